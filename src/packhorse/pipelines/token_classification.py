"""token-classification: a list of entities for each text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from packhorse.errors import UsageError
from packhorse.pipelines.task import Given, Row, one_input


def parameters() -> frozenset[str]:
    return frozenset({"aggregation_strategy", "ignore_labels", "stride", "is_split_into_words", "delimiter",
                      "grouped_entities", "ignore_subwords"})  # fmt: skip


def settings(given: Given) -> dict[str, Any]:
    """Raises UsageError for words that are not joined by spaces, and for a stride without aggregation."""
    if given.get("delimiter") not in (None, " "):
        raise UsageError(f"delimiter={given['delimiter']!r}: words are joined by one space here; leave it out")
    strategy = _strategy(given)
    made: dict[str, Any] = {"aggregation": strategy}
    if given.get("ignore_labels") is not None:
        made["ignore_labels"] = tuple(given["ignore_labels"])
    if given.get("stride") is not None:
        if strategy == "none" and given.get("aggregation_strategy") is not None:
            raise UsageError("stride: windows are put together by an aggregation_strategy; choose another than 'none'")
        made |= {"long": "windows", "stride": given["stride"]}
    return made


def _strategy(given: Given) -> str:
    """By its name, or as version 4 still had it, by grouped_entities and ignore_subwords, which went before it."""
    if given.get("grouped_entities") is not None or given.get("ignore_subwords") is not None:
        return ("first" if given.get("ignore_subwords") else "simple") if given.get("grouped_entities") else "none"
    strategy = given.get("aggregation_strategy") or "none"
    return str(getattr(strategy, "value", strategy)).lower()


def inputs(args: Sequence[Any], given: dict[str, Any]) -> Any:
    """Words of one text are one input."""
    found = one_input(args, given, "inputs")
    is_words = given.get("is_split_into_words") and isinstance(found, list) and found and isinstance(found[0], str)
    return tuple(found) if is_words else found


def row(item: Any, given: Given) -> Row:
    """Raises ValueError for words that are not said to be some."""
    if not isinstance(item, list | tuple):
        return Row(item)
    if not given.get("is_split_into_words"):
        raise ValueError("a list is no text; words of a text come with is_split_into_words=True")
    return Row(list(item))


def results(table: pa.Table, items: Sequence[Any], given: Given) -> list[Any]:
    return list(table["entities"].to_pylist())


def single(result: Any, item: Any, called: Given) -> Any:
    """Words of one text count as a list of texts there."""
    return [result] if isinstance(item, tuple) else result


def together(results: list[Any], items: Sequence[Any]) -> Any:
    return results
