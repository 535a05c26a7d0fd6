"""zero-shot-classification: {sequence, labels, scores}, the likeliest label first."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from packhorse.pipelines.task import Given, Row, one_input


def parameters() -> frozenset[str]:
    return frozenset({"candidate_labels", "hypothesis_template", "multi_label"})


def settings(given: Given) -> dict[str, Any]:
    """Labels go with each row."""
    return {name: given[name] for name in ("hypothesis_template", "multi_label") if name in given}


def inputs(args: Sequence[Any], given: dict[str, Any]) -> Any:
    if len(args) == 2 and "candidate_labels" not in given:
        given["candidate_labels"] = args[1]
        args = args[:1]
    return one_input(args, given, "sequences", "inputs")


def row(item: Any, given: Given) -> Row:
    """Raises ValueError without labels."""
    labels = given.get("candidate_labels")
    if isinstance(labels, str):
        labels = [label.strip() for label in labels.split(",") if label.strip()]
    if not labels:
        raise ValueError("zero-shot-classification: candidate_labels names the labels to choose from, at least one")
    return Row(item, list(labels))


def results(table: pa.Table, items: Sequence[Any], given: Given) -> list[Any]:
    labels, scores = table["labels"].to_pylist(), table["scores"].to_pylist()
    return [
        {"sequence": item, "labels": names, "scores": values}
        for item, names, values in zip(items, labels, scores, strict=True)
    ]


def single(result: Any, item: Any, called: Given) -> Any:
    return result


def together(results: list[Any], items: Sequence[Any]) -> Any:
    return results
