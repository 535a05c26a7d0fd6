"""The nouns of a comparison: what a child process is told, and what it reports. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
from pydantic import BaseModel, ConfigDict

Precision = Literal["fp32", "bf16", "int8", "auto"]
Backend = Literal["auto", "torch", "onnx", "openvino"]
Attention = Literal["auto", "packed", "sdpa", "eager"]
Task = Literal["text-classification", "embedding"]
Pooling = Literal["mean", "cls", "last", "max"]

PRECISIONS: tuple[Precision, ...] = get_args(Precision)
BACKENDS: tuple[Backend, ...] = get_args(Backend)
ATTENTIONS: tuple[Attention, ...] = get_args(Attention)
SEED = 0


class OverLimitError(Exception):
    """A contender would need, or has needed, more than its time limit; the message says what was seen."""


class Frozen(BaseModel):
    """A value that travels as JSON between the processes."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class ModelSpec(Frozen):
    """A model folder and how its outputs are made. `max_length` in tokens, special tokens included.

    `body`: folder of the transformer itself, where it is not `folder`.
    """

    name: str
    folder: Path
    task: Task
    max_length: int
    pooling: Pooling | None = None
    normalize: bool = False
    labels: tuple[str, ...] = ()
    problem_type: str | None = None
    body: Path | None = None

    @property
    def transformer(self) -> Path:
        """The folder that transformers loads."""
        return self.body or self.folder

    def told(self) -> dict[str, Any]:
        """For a result file: without folders, which say nothing on another machine."""
        return self.model_dump(exclude={"folder", "body"})


class Options(Frozen):
    """How a contender runs. `work_dir` is an empty folder of its own; the warmup is not timed.

    `backend`, `attention` and `batch_size` (rows) are for contenders that have a choice of them. `limit_s`: seconds
    that the whole process may take.
    """

    precision: Precision
    backend: Backend = "auto"
    attention: Attention = "auto"
    batch_size: int | None = None
    limit_s: float | None = None
    warmup_rows: int
    work_dir: Path


class Job(Frozen):
    """One child process: import `module`, call its `run` on the rows of `rows_file` (`id`, `text`)."""

    module: str
    model: ModelSpec
    rows_file: Path
    options: Options


class Measurement(Frozen):
    """What one run cost.

    `run_s`: the rows alone (tokenize, forward, results in memory or on disk), in seconds. `load_s`:
    everything before, from the start of the process: imports, weights. `wall_s`: both together, the warmup
    left out. `peak_bytes`: the highest resident memory. `real_tokens`: tokens of the rows after truncation,
    special tokens included. `padding_efficiency`: real / computed tokens. `num_batches`: forwards of the timed part.
    The last three are None where a contender does not tell. `precision`: what it came to, where that was left open.
    """

    num_rows: int
    run_s: float
    load_s: float
    wall_s: float
    peak_bytes: int
    real_tokens: int
    computed_tokens: int | None
    padding_efficiency: float | None
    num_batches: int | None = None
    precision: str | None = None
    details: dict[str, Any] = {}

    @property
    def rows_per_s(self) -> float:
        """Rows per second of `run_s`."""
        return self.num_rows / self.run_s

    @property
    def tokens_per_s(self) -> float:
        """Real tokens per second of `run_s`."""
        return self.real_tokens / self.run_s

    @property
    def batch_s(self) -> float | None:
        """Mean seconds of `run_s` for each batch."""
        return self.run_s / self.num_batches if self.num_batches else None


class Work(NamedTuple):
    """What a way of batching computes for some rows."""

    computed_tokens: int
    num_batches: int


@dataclass(frozen=True)
class Rows:
    """The rows of a job: the Parquet file and what is in it."""

    file: Path
    ids: np.ndarray  # [N] int64
    texts: list[str]


@dataclass(frozen=True)
class Result:
    """What `run` returns. `outputs`: float32 probabilities [N, C] or embeddings [N, D], in row order."""

    measurement: Measurement
    outputs: np.ndarray
