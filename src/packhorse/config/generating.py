"""Settings of generation, by the names of transformers' GenerationConfig where it has them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from packhorse.generation import Decoding

# Fields of GenerationConfig that have a flag of their own.
BY_NAME = (
    "max_new_tokens", "do_sample", "temperature", "top_p", "top_k", "min_p", "repetition_penalty", "num_beams",
    "num_return_sequences", "stop_strings",
)  # fmt: skip


class GenerationSettings(BaseModel):
    """What a model that writes is told. None: as the model's generation_config.json says."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    max_new_tokens: int | None = Field(None, ge=1)
    """Most tokens to write for a prompt; default: what the model says, else 256."""
    do_sample: bool | None = None
    """Sample, instead of taking the likeliest token."""
    temperature: float | None = Field(None, gt=0, allow_inf_nan=False)
    """Logits are divided by it before sampling."""
    top_p: float | None = Field(None, gt=0, le=1)
    """Sample from the likeliest tokens that together have this probability."""
    top_k: int | None = Field(None, ge=0)
    """Sample from the k likeliest tokens; 0: from all."""
    min_p: float | None = Field(None, ge=0, le=1)
    """Sample from tokens that have at least this share of the likeliest one's probability."""
    repetition_penalty: float | None = Field(None, gt=0, allow_inf_nan=False)
    """Above 1: tokens that were there already become less likely."""
    num_beams: int | None = Field(None, ge=1)
    """Beams of a beam search."""
    num_return_sequences: int | None = Field(None, ge=1)
    """Outputs for each prompt; above 1 the output columns hold lists."""
    stop_strings: tuple[str, ...] | None = None
    """Writing ends where one of these has been written."""
    generation: dict[str, Any] = {}
    """Any other field of transformers' GenerationConfig, by its name."""
    seed: int = Field(0, ge=0, lt=2**63)
    """Of sampling: a row's sample is a function of this, the row's number, the sample's and the step's."""
    logprobs: bool = False
    """Adds columns with the tokens written and their log-probabilities."""
    json_schema: str | None = None
    """JSON schema that each output satisfies: a file, or the JSON itself."""
    choices: tuple[str, ...] | None = None
    """Each output is one of these."""
    chat: bool | None = None
    """Prompts go through the model's chat template; default: those of --messages-column or with --system-prompt."""
    system_prompt: str | None = None
    """System message put before each prompt, through the chat template."""
    long: Literal["auto", "error", "truncate", "windows"] = "auto"
    """A text longer than the model: an error row (default where text is generated), cut and counted (default else), or
    read in windows (default of question-answering)."""
    engine: Literal["auto", "continuous", "openvino", "static", "generate", "paged"] = "auto"
    """continuous: rows enter and leave the batch; openvino: so they do, the forward in OpenVINO; static: they leave it;
    generate, paged: transformers' own."""

    def decoding(self) -> Decoding:
        """What was asked for, as a backend is told."""
        given = {name: value for name in BY_NAME if (value := getattr(self, name)) is not None}
        if self.stop_strings:
            given["stop_strings"] = list(self.stop_strings)
        return Decoding({**self.generation, **given}, self.seed, self.logprobs, self.json_schema, self.choices)

    @field_validator("json_schema", mode="after")
    @classmethod
    def _schema_text(cls, value: str | None) -> str | None:
        if value is None:
            return None
        text = value if value.lstrip().startswith("{") else _read(value)
        try:
            is_object = isinstance(json.loads(text), dict)
        except json.JSONDecodeError as error:
            raise ValueError(f"--json-schema {value[:80]}: not JSON: {error}") from None
        if not is_object:
            raise ValueError(f"--json-schema {value[:80]}: a schema is a JSON object")
        return text

    @field_validator("temperature", mode="before")
    @classmethod
    def _above_zero(cls, value: Any) -> Any:
        if value is not None and float(value) == 0:
            raise ValueError("--temperature 0: the likeliest token is what --no-do-sample takes")
        return value

    @field_validator("choices")
    @classmethod
    def _some_choices(cls, value: tuple[str, ...] | None) -> tuple[str, ...] | None:
        if value is not None and (len(set(value)) < 2 or "" in value):
            raise ValueError(f"--choices {','.join(value)}: at least two different ones, none of them empty")
        return value

    @model_validator(mode="after")
    def _said_once(self) -> Self:
        twice = [name for name in BY_NAME if name in self.generation]
        if twice:
            raise ValueError(f"--generation {twice[0]}=...: it has a flag of its own, --{twice[0].replace('_', '-')}")
        if self.json_schema is not None and self.choices is not None:
            raise ValueError("--json-schema and --choices: an output can satisfy only one of them; drop the other")
        if self.chat is False and self.system_prompt is not None:
            raise ValueError("--system-prompt goes through the chat template: drop it, or --no-chat")
        return self


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(
            f"--json-schema {path[:80]}: neither a JSON object nor a file that can be read: {error}"
        ) from None
