"""Pipelines of models that write, as transformers has them (and, of encoder-decoder models, had them in version 4)."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from packhorse.config import GenerationSettings
from packhorse.errors import UsageError
from packhorse.models.preflight import read_object
from packhorse.pipelines.task import Given, Row, one_input

OF_TEXT = frozenset({"truncation", "padding", "prefix", "return_full_text", "return_text"})  # of no generation
# Said as it is done anyway, each is fine: a value that is one of these, or none of a length.
AS_DONE = {
    "return_tensors": (False,), "skip_special_tokens": (True,), "add_special_tokens": (True,), "tools": (),
    "documents": (), "handle_long_generation": (), "tokenizer_encode_kwargs": (), "src_lang": (), "tgt_lang": (),
}  # fmt: skip
INSTEAD = {
    "handle_long_generation": "truncation=True cuts a prompt, at its end",
    "src_lang": "the language is the tokenizer's: save it with src_lang set into the model's folder",
    "tgt_lang": "say forced_bos_token_id, the token of that language",
    "tools": "render the prompt with pipe.tokenizer.apply_chat_template and give it as text",
    "documents": "render the prompt with pipe.tokenizer.apply_chat_template and give it as text",
    "return_tensors": "packhorse.load(..., logprobs=True) gives generated_token_ids",
}
SAMPLING = ("temperature", "top_p", "top_k", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff")


@functools.cache
def parameters() -> frozenset[str]:
    """Those of transformers' GenerationConfig, and the pipelines' own."""
    from transformers import GenerationConfig

    fields = {name for name in GenerationConfig().to_dict() if not name.startswith("_")}
    own = {"seed", "stop_sequence", "continue_final_message", "generation_config"}
    return frozenset(fields | OF_TEXT | set(AS_DONE) | own)


def merged(made: Given, called: Given) -> dict[str, Any]:
    """A call's generation_config stands in place of all that was said of generation before it, as in transformers."""
    before = _spread(made)
    if called.get("generation_config") is not None:
        before = {name: value for name, value in before.items() if name in OF_TEXT}
    return before | _spread(called)


def _spread(given: Given) -> dict[str, Any]:
    """With what a generation_config says beside its defaults by name. Raises UsageError for what is none."""
    rest = {name: value for name, value in given.items() if name != "generation_config"}
    config = given.get("generation_config")
    if config is None:
        return rest
    if not isinstance(config, Mapping) and not hasattr(config, "to_diff_dict"):
        raise UsageError(f"generation_config={config!r:.60}: a GenerationConfig of transformers, or a dictionary")
    said = dict(config) if isinstance(config, Mapping) else config.to_diff_dict()
    ours = {name: value for name, value in said.items() if name != "transformers_version" and not name.startswith("_")}
    return ours | rest


def settings(given: Given) -> dict[str, Any]:
    """Fields of GenerationConfig without a setting of their own go as a dictionary. Raises UsageError."""
    _refuse(given)
    said = {name: value for name, value in given.items() if value is not None and name not in NOT_TOLD}
    if said.get("do_sample") is False:  # without sampling they mean nothing, and a temperature of 0 is often said so
        said = {name: value for name, value in said.items() if name not in SAMPLING}
    own = set(GenerationSettings.model_fields) - {"generation"}
    made = {name: value for name, value in said.items() if name in own}
    stop = made.get("stop_strings") or given.get("stop_sequence")
    if stop is not None:
        made["stop_strings"] = (stop,) if isinstance(stop, str) else tuple(stop)
    made["long"] = "truncate" if given.get("truncation") else "auto"
    others = {name: value for name, value in said.items() if name not in own}
    return made | ({"generation": others} if others else {})


NOT_TOLD = OF_TEXT | set(AS_DONE) | {"stop_sequence", "continue_final_message"}


def _refuse(given: Given) -> None:
    for name, done in AS_DONE.items():
        value = given.get(name)
        if value is not None and value not in done and value != [] and value != {}:
            instead = INSTEAD.get(name, "leave it out")
            raise UsageError(f"{name}={value!r:.60}: packhorse's pipelines do not have it; {instead}")
    if given.get("return_text") is not None and given.get("return_full_text") is not None:
        raise UsageError("return_text and return_full_text exclude each other; say one of them")


def of_model(folder: Path, task: str) -> dict[str, Any]:
    """task_specific_params of config.json, as version 4 read them: a prefix, and settings of generation."""
    config = read_object(folder / "config.json")
    found = (config.get("task_specific_params") or {}).get(task) or {}
    prefix = config.get("prefix")
    known = {name: value for name, value in found.items() if name in parameters()}
    return ({"prefix": prefix} if prefix else {}) | known


def is_message(value: Any) -> bool:
    return isinstance(value, Mapping) and "role" in value and "content" in value


def inputs(args: Sequence[Any], given: dict[str, Any]) -> Any:
    """A chat, a list of messages or a generator of them, is one input."""
    found = one_input(args, given, "text_inputs", "inputs")
    if isinstance(found, list):
        return tuple(found) if found and is_message(found[0]) else found
    if not isinstance(found, Iterator):
        return found
    first = list(itertools.islice(found, 1))
    return (*first, *found) if first and is_message(first[0]) else itertools.chain(first, found)


def row(item: Any, given: Given) -> Row:
    """Raises ValueError where the last message is not to be treated as it is here."""
    if isinstance(item, list | tuple):
        continues = given.get("continue_final_message")
        if continues is not None and item and continues != goes_on(item):
            raise ValueError(
                f"continue_final_message={continues}: an assistant's message at the end is gone on with here, one of "
                "another role is answered"
            )
        return Row(list(item))
    return Row(given.get("prefix", "") + item if isinstance(item, str) else item)


def goes_on(chat: Sequence[Any]) -> bool:
    """Whether the model writes on at the last message, instead of a new one."""
    return bool(is_message(chat[-1]) and chat[-1]["role"] == "assistant")


def outputs(table: pa.Table) -> list[list[str]]:
    """The texts written for each row."""
    return [[text] if isinstance(text, str) else list(text) for text in table.column(0).to_pylist()]


def flat(results: list[Any], items: Sequence[Any]) -> list[Any]:
    """Of a list of texts with one output each the outputs themselves, as encoder-decoder pipelines give them."""
    if all(isinstance(item, str) for item in items) and all(len(result) == 1 for result in results):
        return [result[0] for result in results]
    return results
