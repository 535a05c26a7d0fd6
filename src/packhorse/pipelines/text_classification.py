"""text-classification: {label, score}, or a list of them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from packhorse.pipelines.task import Given, Row, one_input


def parameters() -> frozenset[str]:
    return frozenset({"top_k", "function_to_apply", "truncation", "padding", "max_length"})


def settings(given: Given) -> dict[str, Any]:
    """All scores, since top_k may ask for them."""
    return {
        "scores": "all", "function_to_apply": given.get("function_to_apply") or "auto",
        "max_length": given.get("max_length"),
    }  # fmt: skip


def inputs(args: Sequence[Any], given: dict[str, Any]) -> Any:
    return one_input(args, given, "inputs")


def row(item: Any, given: Given) -> Row:
    """A text, {text, text_pair}, or [[text, text_pair]]."""
    if isinstance(item, Mapping):
        return Row(item["text"], item.get("text_pair"))
    if isinstance(item, list) and len(item) == 1 and isinstance(item[0], list) and len(item[0]) == 2:
        return Row(*item[0])
    if isinstance(item, list | tuple):
        raise ValueError('a list is no text; a pair of texts is {"text": "a text", "text_pair": "its pair"}')
    return Row(item)


def results(table: pa.Table, items: Sequence[Any], given: Given) -> list[Any]:
    labels = json.loads(table.schema.field("scores").metadata[b"labels"])
    made = []
    for scores in table["scores"].to_pylist():
        ranked = sorted(({"label": label, "score": score} for label, score in zip(labels, scores, strict=True)),
                        key=lambda one: -one["score"])  # fmt: skip
        made.append(ranked[: given["top_k"]] if "top_k" in given else ranked[0])
    return made


def single(result: Any, item: Any, given: Given) -> Any:
    """transformers gives a list for a text, unless top_k was said."""
    return [result] if isinstance(item, str) and "top_k" not in given else result


def together(results: list[Any], items: Sequence[Any]) -> Any:
    return results
