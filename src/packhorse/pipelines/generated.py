"""Pipelines of models that write, as transformers has them (and, of encoder-decoder models, had them in version 4)."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from packhorse.config import GenerationSettings
from packhorse.errors import UsageError
from packhorse.models.preflight import read_object
from packhorse.pipelines.task import Given, Row, one_input

OF_TEXT = frozenset(
    {"truncation", "padding", "prefix", "stop_sequence", "return_full_text", "return_text", "max_length"}
)
NOT_DONE = ("return_tensors", "tools", "documents", "handle_long_generation", "tokenizer_encode_kwargs",
            "continue_final_message", "skip_special_tokens", "add_special_tokens")  # fmt: skip


@functools.cache
def parameters() -> frozenset[str]:
    """Those of transformers' GenerationConfig, and the pipelines' own."""
    from transformers import GenerationConfig

    fields = {name for name in GenerationConfig().to_dict() if not name.startswith("_")}
    return frozenset(fields | OF_TEXT | set(NOT_DONE) | {"seed"})


def settings(given: Given) -> dict[str, Any]:
    """Fields of GenerationConfig without a setting of their own go as a dictionary. Raises UsageError."""
    refused = [name for name in NOT_DONE if given.get(name) is not None]
    if refused:
        raise UsageError(f"{refused[0]}={given[refused[0]]!r}: packhorse's pipelines do not have it; leave it out")
    own = set(GenerationSettings.model_fields) - {"generation"}
    made = {name: value for name, value in given.items() if name in own}
    stop = given.get("stop_sequence")
    if stop is not None:
        made["stop_strings"] = (stop,) if isinstance(stop, str) else tuple(stop)
    others = {name: value for name, value in given.items() if name not in own | (OF_TEXT - {"max_length"})}
    made["long"] = "truncate" if given.get("truncation") else "auto"
    return made | ({"generation": others} if others else {})


def of_model(folder: Path, task: str) -> dict[str, Any]:
    """task_specific_params of config.json, as version 4 read them: a prefix, and settings of generation."""
    config = read_object(folder / "config.json")
    found = (config.get("task_specific_params") or {}).get(task) or {}
    known = {name: value for name, value in found.items() if name in parameters()}
    return known if known.get("prefix") or not config.get("prefix") else known | {"prefix": config["prefix"]}


def is_message(value: Any) -> bool:
    return isinstance(value, Mapping) and "role" in value and "content" in value


def inputs(args: Sequence[Any], given: dict[str, Any]) -> Any:
    """A chat, a list of messages, is one input."""
    found = one_input(args, given, "text_inputs", "inputs")
    return tuple(found) if isinstance(found, list) and found and is_message(found[0]) else found


def row(item: Any, given: Given) -> Row:
    if isinstance(item, list | tuple):
        return Row(list(item))
    return Row(given.get("prefix", "") + item if isinstance(item, str) else item)


def outputs(table: pa.Table) -> list[list[str]]:
    """The texts written for each row."""
    return [[text] if isinstance(text, str) else list(text) for text in table.column(0).to_pylist()]


def flat(results: list[Any], items: Sequence[Any]) -> list[Any]:
    """Of a list of texts with one output each the outputs themselves, as encoder-decoder pipelines give them."""
    if all(isinstance(item, str) for item in items) and all(len(result) == 1 for result in results):
        return [result[0] for result in results]
    return results
