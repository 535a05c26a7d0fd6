"""The forward of a shard whose rows become values: batches through a model, values back in input order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np

from packhorse.counters import Counters, Transfers
from packhorse.data import Batch, BatchPlan, Float32s, RowError, Tokenized, Tokens
from packhorse.errors import BatchRefusedError, DeviceOutOfMemoryError
from packhorse.histogram import by_length, shares
from packhorse.stages import LoadedModel, OnBatch, Output
from packhorse.tokenize.dedup import Unique


@runtime_checkable
class Transferred(Protocol):
    """An Output of a device with memory of its own: what was copied for it is known once its values are here."""

    transfers: Transfers


def run_batches(
    tokens: Tokens, unique: Unique, plan: BatchPlan, model: LoadedModel, on_batch: OnBatch, counters: Counters
) -> tuple[Float32s, dict[int, RowError]]:
    """Values [unique rows, width] and, by unique row, what could not be done. Raises DeviceOutOfMemoryError where a
    batch of several rows does not fit."""
    lengths = tokens.lengths[unique.rows]
    values = np.full((len(unique.rows), model.reduction.width), np.nan, np.float32)
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
    return values, errors


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
    if result.shape != (len(rows), values.shape[1]):
        raise RuntimeError(
            f"the backend gave values of shape {result.shape} for {len(rows)} rows of width {values.shape[1]}"
        )
    values[rows] = result


def spread(values: Float32s, unique: Unique, num_rows: int) -> Float32s:
    """Values of the unique rows to all rows that they stand for; NaN elsewhere."""
    if len(values) == num_rows:  # nothing collapsed, nothing in error: every row stands for itself
        return values
    spread = np.full((num_rows, values.shape[1]), np.nan, np.float32)
    has_value = unique.inverse >= 0
    spread[has_value] = values[unique.inverse[has_value]]
    return spread


def all_errors(
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
