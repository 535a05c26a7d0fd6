"""text-generation: [{generated_text}] for each prompt; the prompt stands before it unless return_full_text is False."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from packhorse.pipelines.generated import goes_on, inputs, merged, outputs, parameters, row, settings
from packhorse.pipelines.task import Given

__all__ = ["inputs", "merged", "parameters", "results", "row", "settings", "single", "together"]


def results(table: pa.Table, items: Sequence[Any], given: Given) -> list[Any]:
    is_full = given.get("return_full_text")
    is_full = True if is_full is None else is_full
    return [
        [{"generated_text": _whole(item, text) if is_full else text} for text in texts]
        for item, texts in zip(items, outputs(table), strict=True)
    ]


def _whole(item: Any, text: str) -> Any:
    if isinstance(item, str):
        return item + text
    if not goes_on(item):
        return [*item, {"role": "assistant", "content": text}]
    *before, last = item
    more = text if isinstance(last["content"], str) else [{"type": "text", "text": text}]
    return [*before, {"role": last["role"], "content": last["content"] + more}]


def single(result: Any, item: Any, called: Given) -> Any:
    return result


def together(results: list[Any], items: Sequence[Any]) -> Any:
    return results
