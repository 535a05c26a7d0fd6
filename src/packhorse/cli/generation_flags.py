"""Flags of generation, of quantization and of models larger than a device."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from packhorse.cli.flags import Flag, names
from packhorse.errors import UsageError

Template = Annotated[
    str | None, Flag(help="Prompt made of columns: 'Summarize {title}: {body}'; @FILE reads it from a file.")
]
MessagesColumn = Annotated[str | None, Flag(help="Column with chat messages, lists of {role, content}.")]
SeedColumn = Annotated[str | None, Flag(help="Column that takes the place of the row's number in sampling.")]
MaxNewTokens = Annotated[int | None, Flag(help="Most tokens to write for a prompt; default the model's, else 256.")]
DoSample = Annotated[
    bool | None, Flag("--do-sample/--no-do-sample", help="Sample, or take the likeliest token; default the model's.")
]
Temperature = Annotated[float | None, Flag(help="Logits are divided by it before sampling.")]
TopP = Annotated[float | None, Flag(help="Sample from the likeliest tokens of this probability together.")]
TopK = Annotated[
    int | None,
    Flag(help="Sample from the k likeliest; 0: all. fill-mask, question-answering, sparse-embedding: so many results."),
]
MinP = Annotated[float | None, Flag(help="Sample from tokens with this share of the likeliest one's probability.")]
RepetitionPenalty = Annotated[float | None, Flag(help="Above 1: tokens that were there already become less likely.")]
NumBeams = Annotated[int | None, Flag(help="Beams of a beam search.")]
NumReturnSequences = Annotated[int | None, Flag(help="Outputs for each prompt; above 1 the columns hold lists.")]
StopStrings = Annotated[list[str] | None, Flag(help="Stop where this was written; may be given several times.")]
Generation = Annotated[
    list[str] | None,
    Flag(help="NAME=VALUE: any other field of transformers' GenerationConfig; may be given several times."),
]
Seed = Annotated[int, Flag(help="Of sampling.")]
Logprobs = Annotated[
    bool, Flag("--logprobs", help="Columns with the tokens written, or scored, and their log-probabilities.")
]
JsonSchema = Annotated[str | None, Flag(help="Each output satisfies this JSON schema: a file, or the JSON itself.")]
Choices = Annotated[str | None, Flag(help="Each output is one of these, by comma.")]
Chat = Annotated[
    bool | None,
    Flag("--chat/--no-chat", help="Prompts through the model's chat template; default: messages only."),
]
SystemPrompt = Annotated[str | None, Flag(help="System message before each prompt, through the chat template.")]
Long = Annotated[
    Literal["auto", "error", "truncate", "windows"],
    Flag(help="A text longer than the model: an error row (default for generation), cut and counted, or windows."),
]
Engine = Annotated[
    Literal["auto", "continuous", "openvino", "static", "generate", "paged"],
    Flag(help="Of generation. continuous, openvino: rows enter and leave a batch; static: leave; else transformers'."),
]
Quantization = Annotated[
    Literal["auto", "bitsandbytes", "torchao"], Flag(help="Who quantizes with --precision int8 or int4.")
]
QuantizationOptions = Annotated[
    list[str] | None,
    Flag(help="NAME=VALUE of BitsAndBytesConfig or torchao's config; may be given several times."),
]
DeviceMap = Annotated[
    str | None, Flag(help="auto, balanced, sequential, or a JSON file: which module lies on which device.")
]
MaxMemory = Annotated[str | None, Flag(help="Of each device for --device-map: 0=16GB,1=16GB,cpu=60GB.")]
OffloadFolder = Annotated[str | None, Flag(help="Where layers lie that fit no memory; default a temporary folder.")]
TensorParallel = Annotated[bool, Flag("--tensor-parallel", help="Cut each layer of one model over all of --devices.")]


def parsed(values: Mapping[str, Any]) -> dict[str, Any]:
    """Of a command's parameters those of this file that are lists of texts, as settings. Raises UsageError."""
    return {
        "stop_strings": tuple(values["stop_strings"] or ()) or None,
        "generation": mapping("--generation", values["generation"]),
        "choices": names(values["choices"]),
        "quantization_options": mapping("--quantization-options", values["quantization_options"]),
    }


def mapping(flag: str, pairs: Sequence[str] | None) -> dict[str, Any]:
    """NAME=VALUE as a dictionary; a value is JSON where it can be, else text. Raises UsageError."""
    found: dict[str, Any] = {}
    for pair in pairs or ():
        name, equals, value = pair.partition("=")
        if not equals or not name:
            raise UsageError(f"{flag} {pair}: write NAME=VALUE")
        if name in found:
            raise UsageError(f"{flag} {pair}: {name} was given twice")
        found[name] = _value(value)
    return found


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return {"True": True, "False": False, "None": None}.get(text, text)
