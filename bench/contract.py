"""The nouns of the benchmark: what a child process is told, and what it reports. Imports no torch."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from pydantic import BaseModel, ConfigDict

Precision = Literal["fp32", "bf16", "int8"]
Backend = Literal["auto", "torch", "onnx", "openvino"]
Attention = Literal["auto", "packed", "sdpa", "eager"]
Task = Literal["text-classification", "embedding"]
Pooling = Literal["mean", "cls"]

PRECISIONS: tuple[Precision, ...] = get_args(Precision)
BACKENDS: tuple[Backend, ...] = get_args(Backend)
ATTENTIONS: tuple[Attention, ...] = get_args(Attention)
SEED = 0


class Frozen(BaseModel):
    """A value that travels as JSON between the processes."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class ModelSpec(Frozen):
    """A model folder and how its outputs are made. `max_length` in tokens, special tokens included."""

    name: str
    folder: Path
    task: Task
    max_length: int
    pooling: Pooling | None = None
    normalize: bool = False


class Options(Frozen):
    """How a contender runs. `work_dir` is an empty folder of its own; the warmup is not timed.

    `backend` and `attention` are for contenders that have a choice of them.
    """

    precision: Precision
    backend: Backend = "auto"
    attention: Attention = "auto"
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
    special tokens included. `padding_efficiency`: real / computed tokens; None where a contender does not
    tell.
    """

    num_rows: int
    run_s: float
    load_s: float
    wall_s: float
    peak_bytes: int
    real_tokens: int
    computed_tokens: int | None
    padding_efficiency: float | None
    details: dict[str, Any] = {}

    @property
    def rows_per_s(self) -> float:
        """Rows per second of `run_s`."""
        return self.num_rows / self.run_s

    @property
    def tokens_per_s(self) -> float:
        """Real tokens per second of `run_s`."""
        return self.real_tokens / self.run_s


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
