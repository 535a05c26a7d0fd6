"""fill-mask: the likeliest tokens of a text's mask, {score, token, token_str, sequence} each; a list of them for each
mask, where a text has several."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from packhorse.pipelines.task import Given, Row, of_tokenizer, one_input


def parameters() -> frozenset[str]:
    return frozenset({"top_k", "targets", "tokenizer_kwargs"})


def settings(given: Given) -> dict[str, Any]:
    targets = given.get("targets")
    max_length = of_tokenizer("fill-mask", given, "tokenizer_kwargs")
    made: dict[str, Any] = {"top_k": given.get("top_k"), "max_length": max_length}
    return made if targets is None else made | {"targets": (targets,) if isinstance(targets, str) else tuple(targets)}


def inputs(args: Sequence[Any], given: dict[str, Any]) -> Any:
    return one_input(args, given, "inputs")


def row(item: Any, given: Given) -> Row:
    return Row(item)


def results(table: pa.Table, items: Sequence[Any], given: Given) -> list[Any]:
    return [masks[0] if len(masks) == 1 else masks for masks in table["predictions"].to_pylist()]


def single(result: Any, item: Any, called: Given) -> Any:
    return result


def together(results: list[Any], items: Sequence[Any]) -> Any:
    """transformers gives the result of a list with one text as that of the text."""
    return results[0] if len(results) == 1 else results
