"""THE PATH OF A ROW: read -> tokenize -> plan -> forward -> finish -> write, one shard, top to bottom.

Reading and cutting come before (readers/), committing after (manifest.py); an executor runs the three groups

    prepare (tokenize, dedup, plan)  |  forward  |  finish

of several shards at the same time, and `predict` below runs them one after the other.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, cast

import numpy as np
import pyarrow as pa

from packhorse import forwarding, generating
from packhorse.data import BatchPlan, Int64s, RowError, Shard
from packhorse.errors import DeviceOutOfMemoryError
from packhorse.forwarding import run_batches
from packhorse.generation import Generated, Prompts, UInt64s
from packhorse.histogram import by_length
from packhorse.metrics import Counters
from packhorse.prompts import PromptSource
from packhorse.readers.cut import ShardRows
from packhorse.readers.lists import column_inputs
from packhorse.sequences import Results, Tokenized, Values, Vocabulary
from packhorse.stages import Detokenize, GeneratingTask, Generator, LoadedModel, OnBatch, Planner, Task, Tokenizer
from packhorse.tokenize.dedup import Unique, all_rows, num_duplicates, unique_rows
from packhorse.tokenize.fast import Retokenized

ERROR_TYPE = pa.struct([("kind", pa.large_string()), ("message", pa.large_string())])

DEFAULT_ROWS = 32  # written on at the same time, where the plan says nothing


@dataclass(frozen=True, slots=True)
class Budget:
    """What a batch may hold. Lowered when the device runs out of memory, never raised."""

    max_batch_tokens: int
    batch_size: int | None

    def halved(self) -> Budget:
        rows = None if self.batch_size is None else max(self.batch_size // 2, 1)
        return Budget(max(self.max_batch_tokens // 2, 1), rows)


class Budgets:
    """The budget of each shard: entries of (first shard it holds for, budget). Of those that hold for a shard the
    least: with several processes a later shard may have been lowered before an earlier one."""

    def __init__(self, entries: list[tuple[int, Budget]]) -> None:
        self._entries = entries

    @property
    def entries(self) -> list[tuple[int, Budget]]:
        return list(self._entries)

    def at(self, shard: int) -> Budget:
        holding = [budget for first, budget in self._entries if first <= shard]
        return min(holding, key=lambda budget: (budget.max_batch_tokens, budget.batch_size or 0))

    def lower(self, shard: int) -> Budget:
        """Halves the budget from that shard on."""
        budget = self.at(shard).halved()
        self._entries.append((shard, budget))
        return budget


class Texts(NamedTuple):
    """What is tokenized: texts, or lists of words; second texts, or lists of labels."""

    texts: list[Any]
    pairs: list[Any] | None
    errors: Mapping[int, RowError]


@dataclass(frozen=True, slots=True)
class Stages:
    """The stages of this job, all decided."""

    tokenizer: Tokenizer
    planner: Planner
    model: LoadedModel | Generator
    task: Task
    text_column: str
    pair_column: str | None
    keep: Sequence[str]
    output_prefix: str = ""
    dedup: bool = True
    workers: int = 1  # forwards at the same time
    prompts: PromptSource | None = None  # of generation: takes the place of the text columns
    seed_column: str | None = None
    detokenize: Detokenize | None = None  # of generation
    read_vocabulary: Callable[[], Vocabulary] | None = None  # of the others, for tasks that show tokens

    @property
    def dedups(self) -> bool:
        """Whether rows with the same tokens have the same output."""
        return self.dedup and not (self.generator is not None and self.generator.is_sampled)

    def output_fields(self) -> list[pa.Field]:
        """The columns added to the input's: predictions, then error."""
        return output_fields(self.task, self.model.reduction.width, self.output_prefix)

    @property
    def generator(self) -> Generator | None:
        """The model, where it writes."""
        return cast(Generator, self.model) if self.model.reduction.kind == "generate" else None

    @property
    def computing(self) -> LoadedModel:
        """The model, where it gives values."""
        return cast(LoadedModel, self.model)

    def texts(self, rows: ShardRows) -> Texts:
        """What is tokenized, and rows without it."""
        if self.prompts is not None:
            texts, errors = self.prompts.texts(rows.table, rows.errors)
            return Texts(texts, None, {**errors, **rows.errors})
        texts, broken = column_inputs(rows.table, self.text_column, rows.errors)
        pairs = None
        if self.pair_column:
            pairs, others = column_inputs(rows.table, self.pair_column, rows.errors)
            broken = {**others, **broken}
        return Texts(texts, pairs, {**broken, **rows.errors})


def output_fields(task: Task, width: int, prefix: str) -> list[pa.Field]:
    fields = [*task.fields(width), pa.field("error", ERROR_TYPE)]
    return [f.with_name(prefix + f.name) for f in fields]


@dataclass(slots=True)
class Prepared:
    """A shard ready for the device."""

    shard: Shard
    table: pa.Table
    tokenized: Tokenized
    unique: Unique
    plan: BatchPlan
    budget: Budget
    keys: UInt64s  # [n] of generation; else empty
    texts: Texts
    counters: Counters = field(default_factory=Counters)


@dataclass(slots=True)
class Forwarded:
    """A shard with the values of its sequences, or what was written, in input order; errors hold every row without a
    prediction."""

    shard: Shard
    table: pa.Table
    values: Values | Generated
    errors: dict[int, RowError]
    counters: Counters
    tokenized: Tokenized
    texts: Texts


def prepare(rows: ShardRows, stages: Stages, budget: Budget) -> Prepared:
    """tokenize, dedup, plan."""
    counters = Counters(rows=rows.shard.num_rows)
    with counters.timed("tokenize_s"):
        texts, pairs, errors = stages.texts(rows)
        keys, without = _keys(rows, stages)
        tokenized = stages.tokenizer.tokenize(texts, pairs)
        if isinstance(tokenized, Retokenized):
            counters.notes[_retokenized(rows.shard, tokenized)] = 1
        tokenized = dataclasses.replace(tokenized, errors={**tokenized.errors, **without, **errors})
        unique = unique_rows(tokenized.tokens) if stages.dedups else all_rows(tokenized.tokens)
    lengths = tokenized.tokens.lengths
    counters.truncated_rows, counters.truncated_tokens = tokenized.truncated_rows, tokenized.truncated_tokens
    counters.duplicate_rows = num_duplicates(unique, tokenized.row_of)
    counters.real_tokens, counters.row_tokens = int(lengths[unique.rows].sum()), int(lengths.sum())
    counters.length_rows = by_length(lengths)
    counters.length_tokens = by_length(lengths[unique.rows], lengths[unique.rows])
    counters.flops = stages.model.cost.flops(lengths[unique.rows])
    plan = _plan(lengths[unique.rows], stages, budget)
    made = Texts(texts, pairs, errors)
    return Prepared(rows.shard, rows.table, tokenized, unique, plan, budget, keys, made, counters)


def _keys(rows: ShardRows, stages: Stages) -> tuple[UInt64s, dict[int, RowError]]:
    if stages.generator is None:
        return np.empty(0, np.uint64), {}
    column = rows.table[stages.seed_column] if stages.seed_column else None
    return generating.keys_of(column, rows.numbers)


def _plan(lengths: Int64s, stages: Stages, budget: Budget) -> BatchPlan:
    """All at once where they are written on; else within the budget, and in as many batches for each worker, so that
    none waits for another at the end."""
    if stages.generator is not None:
        return BatchPlan(np.arange(len(lengths)), np.array([0, len(lengths)]))
    tokens = budget.max_batch_tokens
    if stages.workers > 1 and len(lengths):
        total = int(lengths.sum())
        batches = -(-total // (tokens * stages.workers)) * stages.workers
        tokens = min(tokens, (total + batches * int(lengths.mean())) // batches)  # a batch ends up to a row early
    return stages.planner(lengths, max(tokens, 1), budget.batch_size)


def forward(prepared: Prepared, stages: Stages, budget: Budget, on_batch: OnBatch) -> Forwarded:
    """Runs the plan's batches, or writes on the prompts. Raises DeviceOutOfMemoryError where several rows do not fit
    at once."""
    if stages.generator is not None:
        return _generated(prepared, stages.generator, budget, on_batch)
    unique, tokens, counters = prepared.unique, prepared.tokenized.tokens, prepared.counters
    if budget != prepared.budget:
        prepared.plan = _plan(tokens.lengths[unique.rows], stages, budget)
    done = _InRows(on_batch, prepared.shard.num_rows, len(unique.rows), prepared.tokenized.row_of is None)
    values, failed = run_batches(tokens, unique, prepared.plan, stages.computing, done, counters)
    on_batch(prepared.shard.num_rows - done.rows, 0, 0)  # duplicates and rows in error are done with them
    spread = forwarding.spread(values, unique, tokens.num_rows)
    errors = forwarding.all_errors(spread, prepared.tokenized, unique, failed, stages.task.max_value)
    return Forwarded(prepared.shard, prepared.table, spread, errors, counters, prepared.tokenized, prepared.texts)


class _InRows:
    """An OnBatch that is told of sequences and tells of rows: as large a share of them, where a row has several."""

    def __init__(self, on_batch: OnBatch, num_rows: int, num_sequences: int, is_one_each: bool) -> None:
        self._on_batch, self._share = on_batch, 1.0 if is_one_each else num_rows / max(num_sequences, 1)
        self._sequences = self.rows = 0

    def __call__(self, sequences: int, real_tokens: int, computed_tokens: int) -> None:
        self._sequences += sequences
        before, self.rows = self.rows, int(self._sequences * self._share)
        self._on_batch(self.rows - before, real_tokens, computed_tokens)


def _generated(prepared: Prepared, model: Generator, budget: Budget, on_batch: OnBatch) -> Forwarded:
    unique, tokens, num_rows = prepared.unique, prepared.tokenized.tokens, prepared.shard.num_rows
    prompts = Prompts(tokens.take(unique.rows), prepared.keys[unique.rows])
    max_rows = budget.batch_size or DEFAULT_ROWS
    values = generating.generate(prompts, model, max_rows, budget.max_batch_tokens, on_batch, prepared.counters)
    on_batch(num_rows - len(unique.rows), 0, 0)
    spread = generating.spread(values, unique, num_rows)
    errors = generating.all_errors(spread, prepared.tokenized)
    return Forwarded(
        prepared.shard, prepared.table, spread, errors, prepared.counters, prepared.tokenized, prepared.texts
    )


def finish(forwarded: Forwarded, stages: Stages) -> pa.Table:
    """The rows as they are written: input columns, predictions, error; in input order."""
    with forwarded.counters.timed("finish_s"):
        num_rows = forwarded.shard.num_rows
        is_valid = np.ones(num_rows, np.bool_)
        is_valid[list(forwarded.errors)] = False
        made = _columns(forwarded, stages, is_valid)
        messages = [forwarded.errors.get(i) for i in range(num_rows)] if forwarded.errors else []
        error = pa.array(
            [m and {"kind": m.kind, "message": m.message} for m in messages] or pa.nulls(num_rows), ERROR_TYPE
        )
        columns = [*made, error]
        for row_error in forwarded.errors.values():
            forwarded.counters.errors[row_error.kind] = forwarded.counters.errors.get(row_error.kind, 0) + 1
        kept = forwarded.table.select(list(stages.keep)).combine_chunks()
        fields = [*kept.schema, *stages.output_fields()]
        return pa.Table.from_arrays([*kept.columns, *columns], schema=pa.schema(fields))


def _columns(forwarded: Forwarded, stages: Stages, is_valid: np.ndarray) -> list[pa.Array]:
    values = forwarded.values
    if isinstance(values, Generated):
        assert stages.detokenize is not None
        task = cast(GeneratingTask, stages.task)
        lengths = forwarded.tokenized.tokens.lengths
        return task.finish_generated(values, lengths, is_valid, stages.detokenize)
    texts, pairs, _ = forwarded.texts
    return stages.task.finish(Results(values, is_valid, forwarded.tokenized, texts, pairs, stages.read_vocabulary))


def predict(rows: ShardRows, stages: Stages, budget: Budget) -> pa.Table:
    """The whole path at once, for rows in memory. Lowers the budget where a batch does not fit."""
    prepared = prepare(rows, stages, budget)
    while True:
        try:
            forwarded = forward(prepared, stages, budget, lambda *_: None)
            for note in prepared.counters.notes:
                warnings.warn(note, RuntimeWarning, stacklevel=2)
            return finish(forwarded, stages)
        except DeviceOutOfMemoryError:
            budget = budget.halved()


def _retokenized(shard: Shard, tokenized: Retokenized) -> str:
    row = shard.first_row + tokenized.difference.row
    where = f"in shard {shard.index}, row {row:,}"
    return f"tokenizer: {tokenized.difference}, {where}; that shard and the rest were tokenized by hf"
