"""text-classification: {label, score}, or a list of them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from packhorse.pipelines.task import CUT, Given, Row, one_input


def parameters() -> frozenset[str]:
    return frozenset({"top_k", "function_to_apply", "return_all_scores", *CUT})


def settings(given: Given) -> dict[str, Any]:
    """All scores, since top_k may ask for them."""
    function = given.get("function_to_apply") or "auto"
    return {
        "scores": "all", "function_to_apply": str(getattr(function, "name", function)).lower(),
        "max_length": given.get("max_length"),
    }  # fmt: skip


def inputs(args: Sequence[Any], given: dict[str, Any]) -> Any:
    return one_input(args, given, "inputs")


def row(item: Any, given: Given) -> Row:
    """A text, {text, text_pair}, or [[text, text_pair]]. Raises ValueError."""
    if isinstance(item, Mapping):
        if "text" not in item:
            raise ValueError(f"a pair of texts is {{text, text_pair}}; got {', '.join(map(str, item))}")
        return Row(item["text"], item.get("text_pair"))
    if isinstance(item, list) and len(item) == 1 and isinstance(item[0], list) and len(item[0]) == 2:
        return Row(*item[0])
    if isinstance(item, list | tuple):
        raise ValueError('a list is no text; a pair of texts is {"text": "a text", "text_pair": "its pair"}')
    return Row(item)


def results(table: pa.Table, items: Sequence[Any], given: Given) -> list[Any]:
    labels = json.loads(table.schema.field("scores").metadata[b"labels"])
    return [_chosen(labels, scores, given) for scores in table["scores"].to_pylist()]


def _chosen(labels: Sequence[str], scores: Sequence[float], given: Given) -> Any:
    """The best one; with top_k that many, the best first; with return_all_scores all as the model has them."""
    made: list[dict[str, Any]] = [{"label": label, "score": score} for label, score in zip(labels, scores, strict=True)]
    if "top_k" not in given and given.get("return_all_scores"):
        return made
    ranked = sorted(made, key=lambda one: -one["score"])
    return ranked[: given["top_k"]] if "top_k" in given else ranked[0]


def single(result: Any, item: Any, called: Given) -> Any:
    """transformers gives a list for a text, unless the call itself said top_k."""
    return [result] if isinstance(item, str) and "top_k" not in called else result


def together(results: list[Any], items: Sequence[Any]) -> Any:
    return results
