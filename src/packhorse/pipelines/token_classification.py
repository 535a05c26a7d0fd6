"""token-classification: a list of entities for each text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from packhorse.pipelines.task import Given, Row, one_input


def parameters() -> frozenset[str]:
    return frozenset({"aggregation_strategy", "ignore_labels", "stride", "is_split_into_words", "delimiter",
                      "grouped_entities"})  # fmt: skip


def settings(given: Given) -> dict[str, Any]:
    strategy = given.get("aggregation_strategy") or "none"
    made: dict[str, Any] = {"aggregation": str(getattr(strategy, "value", strategy)).lower()}
    if given.get("ignore_labels") is not None:
        made["ignore_labels"] = tuple(given["ignore_labels"])
    if given.get("stride") is not None:
        made |= {"long": "windows", "stride": given["stride"]}
    return made


def inputs(args: Sequence[Any], given: dict[str, Any]) -> Any:
    """Words of one text are one input."""
    found = one_input(args, given, "inputs")
    is_words = given.get("is_split_into_words") and found and isinstance(found, list) and isinstance(found[0], str)
    return tuple(found) if is_words else found


def row(item: Any, given: Given) -> Row:
    return Row(list(item) if isinstance(item, list | tuple) else item)


def results(table: pa.Table, items: Sequence[Any], given: Given) -> list[Any]:
    return list(table["entities"].to_pylist())


def single(result: Any, item: Any, given: Given) -> Any:
    """Words of one text count as a list of texts there."""
    return [result] if isinstance(item, tuple) else result


def together(results: list[Any], items: Sequence[Any]) -> Any:
    return results
