"""The shards of a job in this process: read + tokenize | forward | finish + write, at the same time."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator

import pyarrow as pa

from packhorse.devices.host import rss_peak_bytes
from packhorse.errors import DeviceOutOfMemoryError
from packhorse.executors.executor import Commit, LowerBudget, Outcome, Stop, next_shard
from packhorse.executors.lanes import Breaker, Channel, Lane
from packhorse.metrics import Counters, LiveCounters
from packhorse.readers.cut import ShardRows
from packhorse.sequences import LINES_PER_ROW
from packhorse.shard import Budget, Budgets, Forwarded, Prepared, Stages, finish, forward, predict, prepare

__all__ = ["Local", "Outcome", "Stop", "run_shards"]

# Shards that may wait between two lanes: memory is bounded by them, whatever the input's size.
PREPARED_AHEAD = 2
FORWARDED_AHEAD = 1


class _StopRequestedError(Exception):
    """Raised between two batches."""


class Local:
    """An Executor: the stages of a job in this process."""

    def __init__(self, stages: Stages) -> None:
        self._stages = stages

    @property
    def width(self) -> int:
        """Numbers that a row has as values, about, where rows have several lines of them."""
        reduction = self._stages.model.reduction
        return reduction.width * LINES_PER_ROW[reduction.per]

    @property
    def weight_bytes(self) -> int:
        return self._stages.model.weight_bytes

    @property
    def peak_bytes(self) -> int:
        return rss_peak_bytes()

    @property
    def device_peak_bytes(self) -> int | None:
        return self._stages.model.peak_bytes()

    def texts(self, rows: ShardRows) -> list[str | None]:
        return self._stages.texts(rows).texts

    def predict(self, rows: ShardRows, budget: Budget) -> pa.Table:
        return predict(rows, dataclasses.replace(self._stages, keep=[]), budget)

    def run(
        self, shards: Iterator[ShardRows], budgets: Budgets, commit: Commit, lower: LowerBudget, live: LiveCounters,
        stop: Stop,
    ) -> Outcome:  # fmt: skip
        return run_shards(shards, self._stages, budgets, commit, lower, live, stop)


def run_shards(
    shards: Iterator[ShardRows],
    stages: Stages,
    budgets: Budgets,
    commit: Commit,
    lower: LowerBudget,
    live: LiveCounters,
    stop: Stop,
    breaker: Breaker | None = None,
) -> Outcome:
    """Computes and commits every shard, in order; raises what any lane raised, after all lanes have ended.

    Ends early, without an error, when `stop` is set: what was forwarded by then is committed.
    breaker: tripped by the first error, where `shards` has to know that nobody waits for them any more.
    """
    breaker, outcome = breaker or Breaker(), Outcome()
    prepared: Channel[Prepared] = Channel(breaker, PREPARED_AHEAD)
    forwarded: Channel[Forwarded] = Channel(breaker, FORWARDED_AHEAD)
    lanes = [
        Lane("read+tokenize", breaker, lambda: _prepare_lane(shards, stages, budgets, prepared, live, stop)),
        Lane("finish+write", breaker, lambda: _finish_lane(forwarded, stages, commit, outcome.counters)),
    ]
    for lane in lanes:
        lane.start()
    try:
        _forward_lane(prepared, forwarded, stages, budgets, lower, live, stop, breaker)
    except _StopRequestedError:
        pass  # what is in `forwarded` is still committed
    except BaseException as error:  # noqa: BLE001 - raised below, after the other lanes have ended
        breaker.trip(error)
        stop.has_failed = True
    forwarded.close()
    prepared.abandon()
    begin = time.perf_counter()
    for lane in lanes:
        lane.join()
    stop.has_failed = False
    if breaker.error is not None:
        raise breaker.error
    outcome.wait_input_s = prepared.waited_s
    outcome.wait_output_s = forwarded.blocked_s + time.perf_counter() - begin  # the last shards are still written
    return outcome


def _prepare_lane(
    shards: Iterator[ShardRows],
    stages: Stages,
    budgets: Budgets,
    out: Channel[Prepared],
    live: LiveCounters,
    stop: Stop,
) -> None:
    while not stop.event.is_set():
        begin = time.perf_counter()
        rows = next_shard(shards)
        read_s = time.perf_counter() - begin
        if rows is None:
            break
        ready = prepare(rows, stages, budgets.at(rows.shard.index))
        ready.counters.read_s = read_s
        live.planned(rows.shard.num_rows, ready.counters.real_tokens)
        out.put(ready)
    out.close()


def _forward_lane(
    prepared: Channel[Prepared],
    forwarded: Channel[Forwarded],
    stages: Stages,
    budgets: Budgets,
    lower: LowerBudget,
    live: LiveCounters,
    stop: Stop,
    breaker: Breaker,
) -> None:
    def on_batch(rows: int, real_tokens: int, computed_tokens: int) -> None:
        live.add_batch(rows, real_tokens, computed_tokens)
        breaker.check()  # another lane failed: the rest of the shard would be for nothing
        if real_tokens and stop.event.is_set():
            raise _StopRequestedError

    for shard in prepared:
        while True:
            before = live.snapshot()
            try:
                done = forward(shard, stages, budgets.at(shard.shard.index), on_batch)
                break
            except DeviceOutOfMemoryError:
                live.restore(before)  # the shard is computed again, whole
                lower(shard.shard.index, budgets.lower(shard.shard.index))
        forwarded.put(done)
    live.timeline.add(*live.snapshot(), is_last=True)


def _finish_lane(forwarded: Channel[Forwarded], stages: Stages, commit: Commit, total: Counters) -> None:
    for done in forwarded:
        table = finish(done, stages)
        with done.counters.timed("write_s"):
            commit(done, table)
        total += done.counters
