"""What every integration shares: rows of a batch in memory to their predictions, by one model loaded once."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow as pa

from packhorse.config import EngineConfig, RunConfig, validated
from packhorse.data import RowError
from packhorse.errors import UsageError
from packhorse.loading import Loader
from packhorse.loading.choosing import Texts, choose
from packhorse.loading.loader import CALIBRATED
from packhorse.plans import Plan
from packhorse.readers.columns import is_text, normalized
from packhorse.readers.cut import ShardRows
from packhorse.readers.table import TableReader
from packhorse.selection import Columns, choose_columns
from packhorse.shard import Budget, Stages, output_fields, predict

# What a pipeline decides itself is no setting here: its input, its output, and what happens between them.
OF_ROWS = ("text_column", "pair_column", "template", "messages_column", "seed_column", "output_prefix")


class RowPredictor:
    """A model loaded once, for batches whose columns are the same every time.

    In a pipeline nobody has seen the job's rows beforehand, and each worker sees others. So that all of them compute
    alike, nothing is decided by rows: precision "auto" is fp32 (of a model that writes, its checkpoint's).
    """

    def __init__(self, model: str | Path, settings: Mapping[str, Any], cores: int | None = None) -> None:
        """cores: that this worker may use; None: all that the process may.

        Raises UsageError, RefusedError or ModelError.
        """
        self.config = row_settings(model, settings)
        self._loader = Loader(_engine_settings(self.config))
        self._check_alike()
        if cores is not None:
            self._limit(cores)
        self._plan: Plan = choose(self._loader, 0, Texts("", None), is_job=False).plan
        self._columns: Columns | None = None
        self._stages: Stages | None = None
        self._one_at_a_time = threading.RLock()  # Polars runs expressions in threads, and an engine serves one call

    @property
    def reads(self) -> tuple[str, ...] | None:
        """The columns that it makes its inputs of; None before the first batch, which decides them."""
        found = self._columns
        return None if found is None else tuple(dict.fromkeys([*found.reads, *found.texts]))

    def check_names(self, names: Iterable[str]) -> None:
        """Raises UsageError where one of a batch's columns is named like one of the output."""
        made = {field.name for field in self.fields()}
        taken = [name for name in names if name in made]
        if taken:
            raise UsageError(f"the rows have a column {taken[0]!r}, and so has the output: give output_prefix='p_'")

    def fields(self) -> list[pa.Field]:
        """Of the columns that are made: the predictions, then error."""
        with self._one_at_a_time:
            width = self._loader.any_model(self._plan.precision).reduction.width
        return output_fields(self._loader.task, width, self.config.output_prefix)

    def __call__(self, rows: pa.Table, errors: Mapping[int, RowError] | None = None) -> pa.Table:
        """The columns that are made, one row a row. errors: of rows that are in error already.

        Raises UsageError for a column that is not there, and where one is named like an output column.
        """
        self.check_names(rows.column_names)
        with self._one_at_a_time:
            rows = self._with_texts(rows)
            stages = self._ready(rows)
            assert self._columns is not None and self.reads is not None
            self._check_columns(rows, self.reads, self._columns.texts)
            table, broken = normalized(rows.select(self.reads), self._columns.texts)
            budget = Budget(self._plan.max_batch_tokens, self._plan.batch_size)
            return predict(ShardRows.of(table, broken | dict(errors or {})), stages, budget)

    def close(self) -> None:
        """Frees the model and the tokenizer's threads."""
        if self._stages is not None:
            self._stages.tokenizer.close()
        self._loader.close()

    def _with_texts(self, rows: pa.Table) -> pa.Table:
        """A column of texts that is null in a whole batch, or has no rows in it, may come as one of another type."""
        named = self.reads or (self.config.text_column, self.config.pair_column)
        has_text = any(is_text(field.type) for field in rows.schema)
        for at, field in enumerate(rows.schema):
            is_one = not rows.num_rows or pa.types.is_null(field.type)
            if is_one and not is_text(field.type) and (field.name in named or not has_text):
                rows = rows.set_column(at, field.name, pa.nulls(rows.num_rows, pa.large_string()))
        return rows

    def _check_columns(self, rows: pa.Table, reads: Sequence[str], texts: Sequence[str]) -> None:
        """Of a batch that is not the first: Arrow would make texts of numbers without a word."""
        absent = [name for name in reads if name not in rows.column_names]
        if absent:
            there = ", ".join(rows.column_names) or "none"
            raise UsageError(f"a batch has no column {absent[0]!r}, which the first one had; its columns: {there}")
        for name in texts:
            if not is_text(rows[name].type):
                raise UsageError(f"a batch has {rows[name].type} in the column {name!r}; in the first one it was text")

    def _ready(self, rows: pa.Table) -> Stages:
        """The stages for these columns, made at the first batch."""
        if self._stages is None:
            about = self._loader.description
            columns = choose_columns(self.config, self._loader.task, about, TableReader(rows), datetime.now())
            plan = self._plan.model_copy(update={"text_column": columns.text, "pair_column": columns.pair})
            self._columns = columns
            self._stages = self._loader.stages(
                plan, [], self.config.output_prefix, columns.prompts, self.config.seed_column
            )
        return self._stages

    def _limit(self, cores: int) -> None:
        loader = self._loader
        workers = 1 if loader.workers == 1 else cores
        threads = 1 if loader.threads == 1 else cores
        loader.use(workers, threads, loader.compiled)

    def _check_alike(self) -> None:
        """Raises UsageError for settings with which each worker would compute something else."""
        s, loader = self.config, self._loader
        is_scaled = s.precision in CALIBRATED and s.quantization == "auto" and not loader.own_precision
        if is_scaled and not loader.description.writes:
            raise UsageError(
                f"precision={s.precision!r}: its scales would come from whatever rows a worker sees first. Give a "
                "folder that `packhorse export` made at that precision, or run the job with `packhorse run --ray`"
            )
        if s.do_sample and s.seed_column is None and loader.description.writes:
            raise UsageError(
                "do_sample: rows of a pipeline have no number to draw by; give seed_column, which tells them apart"
            )


def row_settings(model: str | Path, settings: Mapping[str, Any]) -> RunConfig:
    """Raises UsageError for settings that belong to jobs, such as limit."""
    unfit = [name for name in settings if name not in EngineConfig.model_fields and name not in OF_ROWS]
    if unfit and unfit[0] in RunConfig.model_fields:
        raise UsageError(f"{unfit[0]!r} is a setting of jobs, and here the pipeline decides it: drop it")
    if settings.get("tune", "off") != "off":
        raise UsageError(f"tune={settings['tune']!r} decides by the rows of a job, and a pipeline has none: drop it")
    own = {"model": str(model), "input": "(rows of a pipeline)", "output": "(a pipeline)", "progress": "none"}
    return validated(RunConfig, {"tune": "off", "keep": ()} | dict(settings) | own)


def made_fields(model: str | Path, settings: Mapping[str, Any]) -> list[pa.Field]:
    """As RowPredictor.fields(), read from the model's folder without its weights; the lists of an embedding are of any
    length then."""
    config = row_settings(model, settings)
    loader = Loader(_engine_settings(config))
    fields = output_fields(loader.task, 1, config.output_prefix)
    return [field.with_type(_any_length(field.type)) for field in fields]


def _any_length(kind: pa.DataType) -> pa.DataType:
    return pa.list_(kind.value_type) if pa.types.is_fixed_size_list(kind) else kind


def _engine_settings(config: RunConfig) -> EngineConfig:
    settings = EngineConfig(**config.model_dump(include=set(EngineConfig.model_fields)))
    return settings.on_first_device()  # the pipeline spreads rows over devices
