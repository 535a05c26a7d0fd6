"""The nouns of generation: what is asked of a model that writes, and what it wrote. Imports no framework but numpy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from packhorse.data import Float32s, Int8s, Int32s, Int64s, RowError, Tokens

UInt64s = npt.NDArray[np.uint64]

PACKED_ENGINES = ("continuous", "openvino")  # rows enter and leave at any step, and nothing is padded

# Codes of Generated.reasons. stop: an end token or a stop string; length: max_new_tokens, or the model's last position.
FINISH_REASONS = ("stop", "length")
STOP, LENGTH = range(2)

QUANTIZED = ("int8", "int4", "fp8")  # precisions whose weights are quantized

# Two logits closer than this may change places with the batch's composition: such steps are counted.
NEAR_TIE = 1e-4


@dataclass(frozen=True, slots=True)
class Decoding:
    """How a model is to write.

    settings: fields of transformers' GenerationConfig by their own names, those that were asked for; the model's own
    generation_config.json decides the others. num_return_sequences and stop_strings are among them.
    """

    settings: Mapping[str, Any] = field(default_factory=dict)  # JSON values
    seed: int = 0
    with_logprobs: bool = False
    json_schema: str | None = None  # JSON text of a schema that each output satisfies
    choices: tuple[str, ...] | None = None  # each output is one of them

    @property
    def num_samples(self) -> int:
        """Outputs a prompt."""
        return int(self.settings.get("num_return_sequences") or 1)

    @property
    def is_constrained(self) -> bool:
        return self.json_schema is not None or self.choices is not None


@dataclass(frozen=True, slots=True)
class Prompts:
    """n prompts, without padding. Sampling noise is a function of seed, key, sample and step alone, so that a row's
    sample depends neither on its neighbours nor on where a run was resumed."""

    tokens: Tokens
    keys: UInt64s  # [n]

    @property
    def num_rows(self) -> int:
        return self.tokens.num_rows

    def take(self, rows: Int64s) -> Prompts:
        """The given prompts in the given order."""
        return Prompts(self.tokens.take(rows), self.keys[rows])


@dataclass(frozen=True, slots=True)
class Generated:
    """What n prompts x k samples became, prompt by prompt: output j = prompt * k + sample is
    ids[offsets[j]:offsets[j + 1]]. An end token that ended an output is its last id. A prompt in errors has k empty
    outputs."""

    ids: Int32s  # [T]
    offsets: Int64s  # [n * k + 1]
    reasons: Int8s  # [n * k] places in FINISH_REASONS
    near_ties: Int32s  # [n * k] steps whose two best choices were too close to tell apart for sure (NEAR_TIE)
    logprobs: Float32s | None = None  # [T] of each id, under the model's own distribution, before any processor
    errors: Mapping[int, RowError] = field(default_factory=dict)  # by prompt

    @property
    def lengths(self) -> Int64s:
        return np.diff(self.offsets)


@dataclass(frozen=True, slots=True)
class Quantization:
    """Who makes int8 and int4 of the linear layers, and with which of its own settings."""

    method: str = "auto"  # auto | bitsandbytes | torchao
    options: Mapping[str, Any] = field(default_factory=dict)  # of BitsAndBytesConfig, or of torchao's config


@dataclass(frozen=True, slots=True)
class Placement:
    """Where the layers of a model lie that does not go on one device. Memory in bytes."""

    device_map: str | Mapping[str, Any] | None = None  # auto | balanced | sequential, or module name -> device
    max_memory: Mapping[str, int] = field(default_factory=dict)  # device ("0", "cpu", "disk") -> bytes
    offload_folder: str | None = None
    tensor_parallel: bool = False  # every layer cut over devices, by transformers' tp_plan or by vLLM
    devices: tuple[str, ...] = ()  # of tensor_parallel, where the backend is torch: one a rank
    is_planned: bool = False  # device_map is that of a run that is gone on with

    @property
    def is_split(self) -> bool:
        return self.device_map is not None or self.tensor_parallel
