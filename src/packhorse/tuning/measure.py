"""Rows of the job through a loaded model: their values, and the rate at which they came."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from packhorse.batching import planner
from packhorse.collecting import collector
from packhorse.data import Batch, BatchPlan, Float32s, Int64s, Tokens
from packhorse.errors import BatchRefusedError, DeviceOutOfMemoryError
from packhorse.sequences import Values
from packhorse.stages import LoadedModel, Output

WARMUP_BATCHES = 2
MIN_SHARE = 0.3  # of the rows, before a way may be given up
BEATEN = 0.8  # of the rate to beat

Clock = Callable[[], float]  # seconds


class Timed(NamedTuple):
    """values: NaN, or none, for a row that cannot be done, or that was not reached."""

    values: Values
    tokens_per_s: float
    is_whole: bool  # False: given up on the way


def values_of(model: LoadedModel, tokens: Tokens, max_batch_tokens: int) -> Values:
    """Without padding; NaN, or none, for a row that cannot be done."""
    plan = planner("packed" if model.is_packed else "equal")(tokens.lengths, max_batch_tokens, None)
    return _run(model, tokens, plan, lambda _share, _rate: False).values


def time_rows(
    model: LoadedModel, tokens: Tokens, plan: BatchPlan, give_up_below: float | None, clock: Clock = time.perf_counter
) -> Timed:
    """Warm-up, then every batch of the plan, in an order in which the first third is like the whole. Stops where the
    rate, in real tokens/s, stays clearly below give_up_below. Waits for the last value, so that nothing is still on its
    way when the clock stops.

    Raises DeviceOutOfMemoryError where a batch of several rows does not fit.
    """
    mixed = _mixed(plan)
    for b in range(min(WARMUP_BATCHES, mixed.num_batches)):
        _result(_start(model, tokens, mixed.rows(b)), mixed.rows(b))

    def is_hopeless(share: float, rate: float) -> bool:
        return give_up_below is not None and share >= MIN_SHARE and rate < BEATEN * give_up_below

    return _run(model, tokens, mixed, is_hopeless, alone_where_full=False, clock=clock)


def _mixed(plan: BatchPlan) -> BatchPlan:
    """The same batches, long and short ones in turn."""
    order = np.random.default_rng(0).permutation(plan.num_batches)
    rows = [plan.rows(int(b)) for b in order]
    cuts = np.cumsum([0, *map(len, rows)], dtype=np.int64)
    return BatchPlan(np.concatenate(rows) if rows else plan.order, cuts)


def _run(
    model: LoadedModel,
    tokens: Tokens,
    plan: BatchPlan,
    is_hopeless: Callable[[float, float], bool],
    alone_where_full: bool = True,
    clock: Clock = time.perf_counter,
) -> Timed:
    values = collector(model.reduction, tokens)
    waiting: deque[tuple[Int64s, Output | Exception]] = deque()
    total, done, begin = max(int(tokens.offsets[-1]), 1), 0, clock()

    def collect() -> None:
        nonlocal done
        rows, started = waiting.popleft()
        done += int(tokens.lengths[rows].sum())
        result = _result(started, rows if alone_where_full else None)
        if result is not None:
            values.put(rows, result)
            return
        for row in rows if len(rows) > 1 else ():
            alone = _result(_start(model, tokens, np.array([row])), rows)
            if alone is not None:  # else an error row of the run, not its end
                values.put(np.array([row]), alone)

    is_whole = True
    for b in range(plan.num_batches):
        waiting.append((plan.rows(b), _start(model, tokens, plan.rows(b))))
        if len(waiting) > model.in_flight:
            collect()
            is_whole = not is_hopeless(done / total, done / max(clock() - begin, 1e-9))
            if not is_whole:
                break
    while waiting:
        collect()
    return Timed(values.all(), done / max(clock() - begin, 1e-9), is_whole)


def _start(model: LoadedModel, tokens: Tokens, rows: Int64s) -> Output | Exception:
    try:
        return model.forward(Batch(tokens.take(rows)))
    except (DeviceOutOfMemoryError, BatchRefusedError) as error:
        return error


def _result(started: Output | Exception, rows: Int64s | None) -> Float32s | None:
    """None where the model refuses the rows, or where they do not fit; that is raised where no rows are given."""
    try:
        if isinstance(started, Exception):
            raise started
        return started.numpy()
    except BatchRefusedError:
        return None
    except DeviceOutOfMemoryError:
        if rows is None:
            raise
        return None
