"""SamplingParams with the fields and the refusals of the real ones that packhorse meets."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from enum import Enum
from typing import Any


class RequestOutputKind(Enum):
    CUMULATIVE = 0
    DELTA = 1
    FINAL_ONLY = 2


@dataclass
class Constraint:
    json: Any = None
    choice: list[str] | None = None

    def __post_init__(self) -> None:
        if (self.json is None) == (self.choice is None):
            raise ValueError("one kind of constraint is needed")


if os.environ.get("FAKE_VLLM_OLD"):  # before 0.11
    GuidedDecodingParams = Constraint
else:
    StructuredOutputsParams = Constraint


@dataclass
class Fields:
    n: int = 1
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None
    stop: list[str] = field(default_factory=list)
    stop_token_ids: list[int] = field(default_factory=list)
    ignore_eos: bool = False
    max_tokens: int | None = 16
    min_tokens: int = 0
    logprobs: int | None = None
    detokenize: bool = True
    skip_special_tokens: bool = True
    output_kind: RequestOutputKind = RequestOutputKind.CUMULATIVE

    def __post_init__(self) -> None:
        if self.temperature > 2:
            raise ValueError(f"temperature must be in [0, 2], got {self.temperature}.")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be in (0, 1], got {self.top_p}.")
        if self.temperature == 0 and self.n > 1:
            raise ValueError("n must be 1 when using greedy sampling")
        if self.max_tokens is not None and not self.min_tokens <= self.max_tokens >= 1:
            raise ValueError(f"max_tokens {self.max_tokens}, min_tokens {self.min_tokens}")
        if self.stop and not self.detokenize:
            raise ValueError("stop strings are only supported when detokenize is True.")
        if self.seed is not None and not 0 <= self.seed < 2**63:
            raise ValueError("seed")


if os.environ.get("FAKE_VLLM_OLD"):

    @dataclass
    class SamplingParams(Fields):
        guided_decoding: Constraint | None = None

        @property
        def constraint(self) -> Constraint | None:
            return self.guided_decoding
else:

    @dataclass
    class SamplingParams(Fields):
        structured_outputs: Constraint | None = None

        @property
        def constraint(self) -> Constraint | None:
            return self.structured_outputs
