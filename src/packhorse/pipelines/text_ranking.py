"""text-ranking: a score for each (query, document), as sentence-transformers' CrossEncoder.predict gives them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from packhorse.pipelines.task import Given, Row, one_input


def parameters() -> frozenset[str]:
    return frozenset()


def settings(given: Given) -> dict[str, Any]:
    return {}


def inputs(args: Sequence[Any], given: dict[str, Any]) -> Any:
    """A pair of texts, or {text, text_pair}, or a list of them."""
    found = one_input(args, given, "inputs")
    is_pair = isinstance(found, list) and len(found) == 2 and all(isinstance(text, str) for text in found)
    return tuple(found) if is_pair else found


def row(item: Any, given: Given) -> Row:
    """Raises ValueError for what is no pair."""
    if isinstance(item, Mapping):
        return Row(item["text"], item["text_pair"])
    if isinstance(item, list | tuple) and len(item) == 2:
        return Row(*item)
    raise ValueError(f"text-ranking takes (query, document); got {item!r:.80}")


def results(table: pa.Table, items: Sequence[Any], given: Given) -> list[Any]:
    return list(table.column(0).to_pylist())


def single(result: Any, item: Any, called: Given) -> Any:
    return result


def together(results: list[Any], items: Sequence[Any]) -> Any:
    return results
