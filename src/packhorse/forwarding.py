"""The forward of a shard whose rows become values: batches through a model, values back in input order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np

from packhorse.collecting import Collector, collector
from packhorse.counters import Counters, Transfers
from packhorse.data import Batch, BatchPlan, Float32s, Int64s, RowError, Tokens
from packhorse.errors import BatchRefusedError, DeviceOutOfMemoryError
from packhorse.histogram import by_length, shares
from packhorse.sequences import Ragged, Tokenized, Values
from packhorse.stages import LoadedModel, OnBatch, Output
from packhorse.tokenize.dedup import Unique


@runtime_checkable
class Transferred(Protocol):
    """An Output of a device with memory of its own: what was copied for it is known once its values are here."""

    transfers: Transfers


def run_batches(
    tokens: Tokens, unique: Unique, plan: BatchPlan, model: LoadedModel, on_batch: OnBatch, counters: Counters
) -> tuple[Values, dict[int, RowError]]:
    """Values of the unique rows and, by unique row, what could not be done. Raises DeviceOutOfMemoryError where a
    batch of several rows does not fit."""
    lengths = tokens.lengths[unique.rows]
    values = collector(model.reduction, tokens.take(unique.rows))
    errors: dict[int, RowError] = {}
    in_flight: deque[tuple[np.ndarray, Output]] = deque()
    row_computed = np.zeros(len(unique.rows), np.int64)
    transfers = Counters()  # counted into the shard's only when all of its batches are through

    def collect(rows: np.ndarray, output: Output) -> None:
        _collect(rows, output, values, errors, lambda row: _start(model, tokens, unique, row), transfers)

    with counters.timed("compute_s"):
        for b in range(plan.num_batches):
            rows = plan.rows(b)
            in_flight.append((rows, _start(model, tokens, unique, rows)))
            while len(in_flight) > model.in_flight:
                collect(*in_flight.popleft())
            computed = model.computed_tokens(lengths[rows])
            row_computed[rows] = shares(lengths[rows], computed, model.is_packed)
            on_batch(len(rows), int(lengths[rows].sum()), computed)
        while in_flight:
            collect(*in_flight.popleft())
    counters.computed_tokens, counters.batches = int(row_computed.sum()), plan.num_batches
    counters.length_computed = by_length(lengths, row_computed)
    counters.transferred(transfers.transfers)
    return values.all(), errors


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
    values: Collector,
    errors: dict[int, RowError],
    start: Callable[[np.ndarray], Output],
    transfers: Counters,
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
            _collect(np.array([row]), start(np.array([row])), values, errors, start, transfers)
        return
    if isinstance(output, Transferred):
        transfers.transferred(output.transfers)
    values.put(rows, result)


def spread(values: Values, unique: Unique, num_rows: int) -> Values:
    """Values of the unique rows to all rows that they stand for; NaN, or none, elsewhere."""
    if len(unique.rows) == num_rows:  # nothing collapsed, nothing in error: every row stands for itself
        return values
    if isinstance(values, Ragged):
        return values.take(unique.inverse)
    spread = np.full((num_rows, values.shape[1]), np.nan, np.float32)
    has_value = unique.inverse >= 0
    spread[has_value] = values[unique.inverse[has_value]]
    return spread


def all_errors(
    values: Values, tokenized: Tokenized, unique: Unique, failed: dict[int, RowError], max_value: float
) -> dict[int, RowError]:
    """By row of the shard: what tokenizing and the device could not do, and results that are no numbers. A row of
    several sequences is in error where one of them is.

    max_value: the largest number that the output's type holds.
    """
    row_of = tokenized.row_of
    errors = dict(tokenized.errors)
    if failed:
        where = {u: np.flatnonzero(unique.inverse == u) for u in failed}
        rows = {u: np.unique(found if row_of is None else row_of[found]) for u, found in where.items()}
        errors |= {int(row): failed[u] for u, found in rows.items() for row in found}
    wrong = _not_finite(values, max_value)
    for row in wrong if row_of is None else np.unique(row_of[wrong]):
        errors.setdefault(int(row), RowError("not_finite", "the model's output for this row is NaN, or too large"))
    return dict(sorted(errors.items()))


def _not_finite(values: Values, max_value: float) -> Int64s:
    """Numbers of the sequences with such a value."""
    if isinstance(values, Ragged):
        wrong = np.flatnonzero(~(np.abs(values.values) <= max_value).all(1))
        return np.unique(np.searchsorted(values.offsets, wrong, side="right") - 1)
    return np.flatnonzero(~(np.abs(values) <= max_value).all(1))
