"""The path of a row with real stages and a null model whose size and hooks a test chooses."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from packhorse.backends.null import NullModel
from packhorse.batching import planner
from packhorse.config import EngineConfig, RunConfig
from packhorse.data import Batch, Chunk, Position
from packhorse.executors.local import Stop
from packhorse.jobs.job import Job
from packhorse.loading import Loader
from packhorse.metrics import RunReport
from packhorse.outputs.manifest import RunFolder
from packhorse.readers.cut import ShardRows, cut_shards
from packhorse.readers.table import TableReader
from packhorse.report.reporter import Reporter
from packhorse.shard import Stages
from packhorse.tasks.text_classification import TextClassification
from packhorse.tokenize.fast import FastTokenizer
from packhorse.tokenize.huge import TokenizeSettings
from packhorse.writers import make_writer
from tests.models import word_piece_tokenizer
from tests.null.reference import MAX_LENGTH

TWO_LABELS = TextClassification(("L0", "L1"), None, EngineConfig(model="none"))


def stages(
    capacity_tokens: int | None = None, before_batch: Callable[[Batch], None] | None = None,
    batching: str = "padded", dedup: bool = True,
) -> Stages:  # fmt: skip
    """Those of the model in the fixture `null_model`."""
    return Stages(
        tokenizer=FastTokenizer(word_piece_tokenizer(), TokenizeSettings(MAX_LENGTH, threads=2)),
        planner=planner(batching),
        model=NullModel(TWO_LABELS.reduction(), capacity_tokens, before_batch),
        task=TWO_LABELS,
        text_column="text",
        pair_column=None,
        keep=["text"],
        dedup=dedup,
    )


class Device(Loader):
    """Loads the null model as a device of a chosen size, or one that fails at a chosen batch."""

    def __init__(
        self, settings: EngineConfig, capacity_tokens: int | None, before_batch: Callable[[Batch], None] | None
    ) -> None:
        super().__init__(settings)
        self._device = NullModel(self.task.reduction(), capacity_tokens, before_batch)

    def any_model(self, precision: str) -> NullModel:
        return self._device


def run_on_device(
    model: Path, rows: Any, output: Path, capacity_tokens: int | None = None,
    before_batch: Callable[[Batch], None] | None = None, **settings: Any,
) -> RunReport:  # fmt: skip
    """What packhorse.run does, on that device."""
    config = RunConfig(
        model=str(model), backend="null", input="(in memory)", output=str(output), progress="none", **settings
    )
    loader = Device(config, capacity_tokens, before_batch)
    folder = RunFolder(config.output, config.output_is_file, files=make_writer(config.output_extension).files)
    return Job(config, loader, TableReader(rows), folder, Reporter("none"), Stop()).run()


def rows_of_texts(texts: Sequence[str | None]) -> ShardRows:
    return ShardRows.of(pa.table({"text": pa.array(texts, pa.large_string())}), {})


def shards_of_texts(texts: Sequence[str | None], shard_rows: int) -> Iterator[ShardRows]:
    table = rows_of_texts(texts).table
    chunk = Chunk(table, 0, np.arange(len(texts) + 1), np.ones(len(texts), np.int64))
    return cut_shards([chunk], Position(0, 0), 0, 0, ["text"], shard_rows, 4, None)
