"""Settings, model and rows of an evaluation, before anything is computed."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from datetime import datetime
from pathlib import Path
from typing import Any

from packhorse.config import RunConfig, validated
from packhorse.data import Position
from packhorse.errors import UsageError, did_you_mean
from packhorse.evaluating.measures import Tally
from packhorse.loading import Loader
from packhorse.loading.choosing import Texts, choose
from packhorse.plans import Plan
from packhorse.readers import open_input
from packhorse.readers.cut import MAX_OUTPUT_BYTES, ShardRows, cut_shards
from packhorse.readers.options import ReaderOptions
from packhorse.readers.sample import Sample
from packhorse.readers.table import TableReader
from packhorse.selection import Columns, choose_columns
from packhorse.shard import Budget, Stages
from packhorse.stages import Reader

NO_FILE = "evaluation.parquet"  # settings of a run need an output; none is made
SHARD_ROWS = 16_384
SETTINGS = (
    "input_format", "delimiter", "header", "text_column", "pair_column", "limit", "shard_rows", "task", "pooling",
    "normalize", "prompt_name", "revision", "adapter", "long", "stride", "combine", "function_to_apply",
    "max_answer_len", "handle_impossible_answer", "backend", "provider", "onnx_file", "devices", "device_map",
    "max_memory", "offload_folder", "precision", "exact", "tolerance", "attention", "compile", "batching", "batch_size",
    "max_batch_tokens", "max_length", "tokenizer", "tokenizer_threads", "tune",
)  # fmt: skip

OnRows = Callable[[float, float], None]  # rows that are done, rows in all as far as that is known


@dataclasses.dataclass(frozen=True, slots=True)
class Job:
    """What is to be evaluated."""

    config: RunConfig
    loader: Loader
    reader: Reader
    stack: ExitStack  # closes what is opened, at the end


@dataclasses.dataclass(frozen=True, slots=True)
class Planned:
    """How it is computed."""

    plan: Plan
    stages: Stages
    total_rows: float

    @property
    def budget(self) -> Budget:
        return Budget(self.plan.max_batch_tokens, self.plan.batch_size)


@dataclasses.dataclass(frozen=True, slots=True)
class Outcome:
    """What was found. start_s, end_s: of computing, by time.perf_counter."""

    measured: str
    input: str
    plan: Plan
    metrics: Mapping[str, Any]
    headline: tuple[str, ...]
    rows: int
    computed_rows: int
    tally: Tally
    truncated_texts: int
    start_s: float
    end_s: float


class Progress:
    """Rows that are done, from shards and from the shares of them that are."""

    def __init__(self, on_rows: OnRows, total_rows: float) -> None:
        self._on_rows, self._total = on_rows, total_rows
        self._before = self._num_rows = 0
        self._share, self._parts = 0.0, 1

    def begin(self, num_rows: int, parts: int = 1) -> None:
        """Of a shard, which is gone through so many times."""
        self._num_rows, self._parts, self._share = num_rows, parts, 0.0

    def batch(self, share: float) -> None:
        self._share += share / self._parts
        self._on_rows(self._before + self._num_rows * self._share, self._total)

    def end(self) -> None:
        self._before += self._num_rows
        self._on_rows(self._before, self._total)


def opened(model: str | Path, input: Any, settings: Mapping[str, Any], stack: ExitStack) -> Job:
    """Raises UsageError, RefusedError or ModelError."""
    for name in settings:
        if name not in SETTINGS:
            raise UsageError(f"packhorse eval takes no setting {name}{did_you_mean(name, SETTINGS)}")
    is_address = isinstance(input, str | Path)
    values = {"model": str(model), "input": str(input) if is_address else TableReader.files[0], "output": NO_FILE}
    config: RunConfig = validated(RunConfig, {**values, **settings})
    if len(config.device_names()) > 1 or config.devices == "all":
        raise UsageError(f"--devices {config.devices}: an evaluation runs on one device; name one")
    reader = reader_of(input, config)
    loader = Loader(config)
    stack.callback(loader.close)
    return Job(config, loader, reader, stack)


def reader_of(input: Any, config: RunConfig) -> Reader:
    """Of a path or address, or of rows in memory. Raises UsageError."""
    if isinstance(input, str | Path):
        return open_input(str(input), options=ReaderOptions.of(config))
    return TableReader(input)


def columns_of(job: Job, reader: Reader, text: str | None, pair: str | None, keep: list[str]) -> Columns:
    """The columns that are computed on, and `keep`. Raises UsageError."""
    told = {"text_column": text, "pair_column": pair, "keep": tuple(keep), "output_prefix": "predicted "}
    config = job.config.model_copy(update=told)
    return choose_columns(config, job.loader.task, job.loader.description, reader, datetime.now())


def planned(job: Job, columns: Columns, sample: Sample, pairs: bool) -> Planned:
    """pairs: the two columns are read together; else they are texts of their own. Raises ModelError."""
    texts = sample.texts[0] if pairs else [text for column in sample.texts for text in column]
    job.loader.see(texts, sample.pairs if pairs else None, sample.is_whole)
    total = sample.total_rows * len(texts) / max(len(sample.texts[0]), 1)
    taken, plan = choose(job.loader, total, Texts(columns.text, columns.pair if pairs else None))
    job.stack.callback(lambda: taken.drop(taken.loaded))
    stages = dataclasses.replace(taken.stages(plan, list(columns.keep)), dedup=False)
    job.stack.callback(stages.tokenizer.close)
    return Planned(plan, stages, sample.total_rows)


def shards(config: RunConfig, reader: Reader, columns: Columns, row_bytes: int) -> Iterator[ShardRows]:
    """row_bytes: of values on the device."""
    start = Position(0, 0)
    most = config.shard_rows or max(min(SHARD_ROWS, MAX_OUTPUT_BYTES // row_bytes), 1)
    chunks = reader.read(start, columns.reads, columns.texts)
    return cut_shards(chunks, start, 0, 0, columns.texts, most, row_bytes, config.limit)
