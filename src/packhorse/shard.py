"""THE PATH OF A ROW: read -> tokenize -> plan -> forward -> finish -> write, one shard, top to bottom.

Reading and cutting come before (readers/), committing after (manifest.py); an executor runs the three groups

    prepare (tokenize, dedup, plan)  |  forward  |  finish

of several shards at the same time, and `predict` below runs them one after the other.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from packhorse.data import Batch, BatchPlan, Float32s, Int64s, RowError, Shard, Tokenized, Tokens
from packhorse.errors import BatchRefusedError, DeviceOutOfMemoryError
from packhorse.histogram import by_length, shares
from packhorse.metrics import Counters
from packhorse.readers.columns import column_texts
from packhorse.readers.cut import ShardRows
from packhorse.stages import LoadedModel, Output, Planner, Task, Tokenizer
from packhorse.tokenize.dedup import Unique, all_rows, unique_rows
from packhorse.tokenize.fast import Retokenized

ERROR_TYPE = pa.struct([("kind", pa.large_string()), ("message", pa.large_string())])

OnBatch = Callable[[int, int, int], None]  # rows, real tokens, computed tokens


@dataclass(frozen=True, slots=True)
class Budget:
    """What a batch may hold. Lowered when the device runs out of memory, never raised."""

    max_batch_tokens: int
    batch_size: int | None

    def halved(self) -> Budget:
        rows = None if self.batch_size is None else max(self.batch_size // 2, 1)
        return Budget(max(self.max_batch_tokens // 2, 1), rows)


class Budgets:
    """The budget of each shard: entries of (first shard it holds for, budget), in order; a later one is smaller."""

    def __init__(self, entries: list[tuple[int, Budget]]) -> None:
        self._entries = entries

    def at(self, shard: int) -> Budget:
        return next(budget for first, budget in reversed(self._entries) if first <= shard)

    def lower(self, shard: int) -> Budget:
        """Halves the budget from that shard on."""
        budget = self.at(shard).halved()
        self._entries.append((shard, budget))
        return budget


@dataclass(frozen=True, slots=True)
class Stages:
    """The stages of this job, all decided."""

    tokenizer: Tokenizer
    planner: Planner
    model: LoadedModel
    task: Task
    text_column: str
    pair_column: str | None
    keep: Sequence[str]
    output_prefix: str = ""
    dedup: bool = True
    workers: int = 1  # forwards at the same time

    def output_fields(self) -> list[pa.Field]:
        """The columns added to the input's: predictions, then error."""
        return output_fields(self.task, self.model.reduction.width, self.output_prefix)


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
    counters: Counters = field(default_factory=Counters)


@dataclass(slots=True)
class Forwarded:
    """A shard with its values, back in input order; errors hold every row without a prediction."""

    shard: Shard
    table: pa.Table
    values: Float32s  # [rows, width]
    errors: dict[int, RowError]
    counters: Counters


def prepare(rows: ShardRows, stages: Stages, budget: Budget) -> Prepared:
    """tokenize, dedup, plan."""
    counters = Counters(rows=rows.shard.num_rows)
    with counters.timed("tokenize_s"):
        texts = column_texts(rows.table[stages.text_column], rows.errors)
        pairs = column_texts(rows.table[stages.pair_column], rows.errors) if stages.pair_column else None
        tokenized = stages.tokenizer.tokenize(texts, pairs)
        if isinstance(tokenized, Retokenized):
            counters.notes[_retokenized(rows.shard, tokenized)] = 1
        tokenized = dataclasses.replace(tokenized, errors={**tokenized.errors, **rows.errors})
        unique = unique_rows(tokenized.tokens) if stages.dedup else all_rows(tokenized.tokens)
    lengths = tokenized.tokens.lengths
    counters.truncated_rows, counters.truncated_tokens = tokenized.truncated_rows, tokenized.truncated_tokens
    counters.duplicate_rows = int((unique.inverse >= 0).sum()) - len(unique.rows)
    counters.real_tokens, counters.row_tokens = int(lengths[unique.rows].sum()), int(lengths.sum())
    counters.length_rows = by_length(lengths)
    counters.length_tokens = by_length(lengths[unique.rows], lengths[unique.rows])
    counters.flops = stages.model.cost.flops(lengths[unique.rows])
    plan = _plan(lengths[unique.rows], stages, budget)
    return Prepared(rows.shard, rows.table, tokenized, unique, plan, budget, counters)


def _plan(lengths: Int64s, stages: Stages, budget: Budget) -> BatchPlan:
    """Within the budget, and in as many batches for each worker, so that none waits for another at the end."""
    tokens = budget.max_batch_tokens
    if stages.workers > 1 and len(lengths):
        total = int(lengths.sum())
        batches = -(-total // (tokens * stages.workers)) * stages.workers
        tokens = min(tokens, (total + batches * int(lengths.mean())) // batches)  # a batch ends up to a row early
    return stages.planner(lengths, max(tokens, 1), budget.batch_size)


def forward(prepared: Prepared, stages: Stages, budget: Budget, on_batch: OnBatch) -> Forwarded:
    """Runs the plan's batches. Raises DeviceOutOfMemoryError where a batch of several rows does not fit."""
    unique, tokens, counters = prepared.unique, prepared.tokenized.tokens, prepared.counters
    lengths = tokens.lengths[unique.rows]
    if budget != prepared.budget:
        prepared.plan = _plan(lengths, stages, budget)
    values = np.full((len(unique.rows), stages.model.reduction.width), np.nan, np.float32)
    errors: dict[int, RowError] = {}
    in_flight: deque[tuple[np.ndarray, Output]] = deque()
    row_computed = np.zeros(len(unique.rows), np.int64)

    def collect(rows: np.ndarray, output: Output) -> None:
        _collect(rows, output, values, errors, lambda row: _start(stages.model, tokens, unique, row))

    with counters.timed("compute_s"):
        for b in range(prepared.plan.num_batches):
            rows = prepared.plan.rows(b)
            in_flight.append((rows, _start(stages.model, tokens, unique, rows)))
            while len(in_flight) > stages.model.in_flight:
                collect(*in_flight.popleft())
            computed = stages.model.computed_tokens(lengths[rows])
            row_computed[rows] = shares(lengths[rows], computed, stages.model.is_packed)
            on_batch(len(rows), int(lengths[rows].sum()), computed)
        while in_flight:
            collect(*in_flight.popleft())
    counters.computed_tokens, counters.batches = int(row_computed.sum()), prepared.plan.num_batches
    counters.length_computed = by_length(lengths, row_computed)
    on_batch(prepared.shard.num_rows - len(unique.rows), 0, 0)  # duplicates and rows in error are done with them
    spread = _spread(values, unique, prepared.shard.num_rows)
    row_errors = _all_errors(spread, prepared.tokenized, unique, errors, stages.task.max_value)
    return Forwarded(prepared.shard, prepared.table, spread, row_errors, counters)


def finish(forwarded: Forwarded, stages: Stages) -> pa.Table:
    """The rows as they are written: input columns, predictions, error; in input order."""
    with forwarded.counters.timed("finish_s"):
        num_rows = forwarded.shard.num_rows
        is_valid = np.ones(num_rows, np.bool_)
        is_valid[list(forwarded.errors)] = False
        values = forwarded.values
        values[~is_valid] = 0
        messages = [forwarded.errors.get(i) for i in range(num_rows)] if forwarded.errors else []
        error = pa.array(
            [m and {"kind": m.kind, "message": m.message} for m in messages] or pa.nulls(num_rows), ERROR_TYPE
        )
        columns = [*stages.task.finish(values, is_valid), error]
        for row_error in forwarded.errors.values():
            forwarded.counters.errors[row_error.kind] = forwarded.counters.errors.get(row_error.kind, 0) + 1
        kept = forwarded.table.select(list(stages.keep)).combine_chunks()
        fields = [*kept.schema, *stages.output_fields()]
        return pa.Table.from_arrays([*kept.columns, *columns], schema=pa.schema(fields))


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


@dataclass(frozen=True, slots=True)
class _Refusal:
    """Stands for the output of a batch that could not even be started."""

    error: Exception

    def numpy(self) -> Float32s:
        raise self.error


def _start(model: LoadedModel, tokens: Tokens, unique: Unique, rows: np.ndarray) -> Output:
    try:
        return model.forward(Batch(tokens.take(unique.rows[rows])))
    except (DeviceOutOfMemoryError, BatchRefusedError) as error:
        return _Refusal(error)


def _collect(
    rows: np.ndarray,
    output: Output,
    values: Float32s,
    errors: dict[int, RowError],
    start: Callable[[np.ndarray], Output],
) -> None:
    """Waits for a batch's values; its rows run one by one where the model refuses them together. A row that cannot be
    done is in errors. Raises DeviceOutOfMemoryError where several rows do not fit."""
    try:
        result = output.numpy()
    except DeviceOutOfMemoryError as error:
        if len(rows) > 1:
            raise
        errors[int(rows[0])] = RowError("out_of_memory", f"the row alone does not fit on the device: {error}")
        return
    except BatchRefusedError as error:
        if len(rows) == 1:
            errors[int(rows[0])] = RowError("refused_by_model", str(error))
            return
        for row in rows:
            _collect(np.array([row]), start(np.array([row])), values, errors, start)
        return
    if result.shape != (len(rows), values.shape[1]):
        raise RuntimeError(
            f"the backend gave values of shape {result.shape} for {len(rows)} rows of width {values.shape[1]}"
        )
    values[rows] = result


def _spread(values: Float32s, unique: Unique, num_rows: int) -> Float32s:
    """Values of the unique rows to all rows that they stand for; NaN elsewhere."""
    if len(values) == num_rows:  # nothing collapsed, nothing in error: every row stands for itself
        return values
    spread = np.full((num_rows, values.shape[1]), np.nan, np.float32)
    has_value = unique.inverse >= 0
    spread[has_value] = values[unique.inverse[has_value]]
    return spread


def _all_errors(
    values: Float32s, tokenized: Tokenized, unique: Unique, failed: dict[int, RowError], max_value: float
) -> dict[int, RowError]:
    """By row of the shard: what tokenizing and the device could not do, and results that are no numbers.

    max_value: the largest number that the output's type holds.
    """
    errors = dict(tokenized.errors)
    if failed:
        where = {u: np.flatnonzero(unique.inverse == u) for u in failed}
        errors |= {int(row): failed[u] for u, rows in where.items() for row in rows}
    for row in np.flatnonzero(~(np.abs(values) <= max_value).all(1)):
        errors.setdefault(int(row), RowError("not_finite", "the model's output for this row is NaN, or too large"))
    return dict(sorted(errors.items()))
