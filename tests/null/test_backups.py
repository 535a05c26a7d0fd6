"""A device far slower than the others: its shards are computed once more elsewhere, the first result counts, each row
counts once, and the job does not wait for what nobody needs."""

from __future__ import annotations

import itertools
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from packhorse.data import Position, Shard
from packhorse.executors import handing, sharing
from packhorse.executors.executor import Done, Outcome, Stop
from packhorse.executors.process import WorkerGoneError, WorkerProcess
from packhorse.executors.processes import Processes
from packhorse.executors.wire import Message
from packhorse.executors.worker import Computed, Ended, Facts
from packhorse.metrics import Counters, LiveCounters
from packhorse.readers.cut import ShardRows
from packhorse.shard import Budget, Budgets
from tests.null.devices import deadline, plant, write_rows
from tests.null.runs import parts, run

BUDGET = Budget(64, None)
ROWS = 10  # of a shard
FAST_S, SLOW_S = 0.01, 0.2  # of a shard: 20 times as long


@pytest.fixture(autouse=True)
def _never_hangs(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(handing, "LATE_S", 0.02)  # a shard of these tests takes hundredths of a second
    monkeypatch.setattr(sharing, "STRAGGLER_S", 0.2)
    with deadline(60):
        yield


class Slow(WorkerProcess):
    """A worker that sleeps, and then gives back twice each number."""

    def __init__(self, device: str, shard_s: Callable[[int], float]) -> None:
        super().__init__("", device, None)
        self._shard_s, self._budgets = shard_s, Budgets([])
        self._due: deque[tuple[float, Message]] = deque()
        self._rows = 0
        self.was_killed = self.is_told_to_stop = False
        self.refuses_first, self._first = False, -1  # its first shard does not fit under BUDGET

    def start(self) -> None:
        self.facts = Facts(1, 0)
        self._due.clear()

    def send(self, kind: str, values: Any = None, table: Any = None) -> None:
        if kind == "budgets":
            self._budgets = Budgets(values)
        elif kind == "shard":
            self._first = values.shard.index if self._first < 0 else self._first
            begin_s = max(time.monotonic(), self._due[-1][0] if self._due else 0.0)
            self._due.append((begin_s + self._shard_s(values.shard.index), Message("shard", values.shard, table)))
        elif kind == "stop":
            self.is_told_to_stop = True
        elif kind == "end":
            self._due.append((time.monotonic(), self._ended()))

    def _ended(self) -> Message:
        return Message("ended", Ended(0.0, 0.0, 0, None))

    def receive(self, timeout_s: float) -> Message | None:
        if self.was_killed:
            raise WorkerGoneError("was killed")
        wait_s = self._due[0][0] - time.monotonic() if self._due else timeout_s
        time.sleep(max(min(wait_s, timeout_s), 0))
        if not self._due or self._due[0][0] > time.monotonic():
            return None
        message = self._due[0][1]
        if message.kind != "shard":
            return self._due.popleft()[1]
        shard: Shard = message.values
        if self.refuses_first and shard.index == self._first and self._budgets.at(shard.index) == BUDGET:
            return Message("out_of_memory", (shard.index, BUDGET))
        self._due.popleft()
        self._rows += shard.num_rows
        computed = Computed(shard, {}, Counters(rows=shard.num_rows), self._budgets.at(shard.index))
        assert message.table is not None
        doubled = pa.table({"twice": pa.array([2 * n for n in message.table["n"].to_pylist()])})
        self._due.appendleft((0.0, Message("done", computed, doubled)))
        return Message("progress", (self._rows, 0, 0, self._rows, 0))

    def kill(self) -> None:
        self.was_killed = True

    def close(self, deadline_s: float) -> None:
        self.was_killed = True


def late_once(seconds: float) -> Callable[[int], float]:
    """With its first shard."""
    calls = itertools.count()
    return lambda _: seconds if next(calls) == 0 else FAST_S


class Pool(Processes):
    def __init__(self, *shard_s: Callable[[int], float]) -> None:
        self._times = deque(shard_s)
        self.said: list[str] = []
        count = len(shard_s)
        super().__init__("", ["none"] * count, [None] * count, ["n"], ["n"], self.said.append, lambda: None)

    def new_worker(self, module: str, device: str, spec: Any) -> WorkerProcess:
        return Slow(device, self._times.popleft())


def shards(count: int) -> Iterator[ShardRows]:
    for index in range(count):
        first = ROWS * index
        shard = Shard(index, first, ROWS, Position(0, first), Position(0, first + ROWS))
        yield ShardRows(shard, pa.table({"n": range(first, first + ROWS)}), {})


def worked(pool: Pool, count: int, lowered: list[Any] | None = None) -> tuple[Outcome, list[int], LiveCounters]:
    """The outcome, the rows in the order of their commits, and the live counters at the end."""
    committed: list[pa.Table] = []
    live, budgets = LiveCounters(), Budgets([(0, BUDGET)])

    def commit(done: Done, table: pa.Table) -> None:
        committed.append(table)

    def lower(*values: Any) -> None:
        (lowered if lowered is not None else []).append(values)

    outcome = pool.run(shards(count), budgets, commit, lower, live, Stop())
    table = pa.concat_tables(committed)
    assert table["twice"].to_pylist() == [2 * n for n in table["n"].to_pylist()]
    return outcome, table["n"].to_pylist(), live


@pytest.mark.parametrize("devices", [2, 5])
def test_each_row_counts_once_whoever_was_first(devices: int) -> None:
    pool = Pool(lambda _: SLOW_S, *[lambda _: FAST_S] * (devices - 1))
    outcome, rows, live = worked(pool, 60)
    assert rows == list(range(60 * ROWS))
    assert outcome.counters.rows == live.rows == 60 * ROWS
    assert sum(worker["rows"] for worker in outcome.workers) == 60 * ROWS
    assert sum(worker["shards"] for worker in outcome.workers) == 60
    assert all(worker["wasted_rows"] == ROWS * worker["wasted_shards"] for worker in outcome.workers)
    wasted = sum(worker["wasted_shards"] for worker in outcome.workers)
    assert bool(pool.said) == bool(wasted)
    assert not wasted or f"{ROWS * wasted:,} rows of {wasted} shards were computed twice" in pool.said[0]


def test_results_that_come_second_are_counted() -> None:
    """The slow device's first shard is late, and is given back long before the job ends."""
    pool = Pool(late_once(0.5), lambda _: 0.02)
    outcome, rows, live = worked(pool, 60)
    assert rows == list(range(60 * ROWS)) and live.rows == 60 * ROWS
    assert sum(worker["wasted_rows"] for worker in outcome.workers) >= ROWS
    assert sum(worker["rows"] for worker in outcome.workers) == 60 * ROWS


def test_a_device_that_never_ends_is_not_waited_for() -> None:
    pool = Pool(lambda index: FAST_S if index < 2 else 1_000.0, lambda _: FAST_S, lambda _: FAST_S)
    outcome, rows, live = worked(pool, 40)
    stuck = pool.workers[0]
    assert isinstance(stuck, Slow) and stuck.is_told_to_stop and stuck.was_killed and not pool.is_left(stuck)
    assert rows == list(range(40 * ROWS)) and outcome.counters.rows == live.rows == 40 * ROWS
    assert sum(worker["rows"] for worker in outcome.workers) == 40 * ROWS
    pool.close()


def test_a_backup_that_does_not_fit_lowers_no_budget_of_what_is_committed() -> None:
    """The first device is late with a shard that another computes, and then finds that it does not fit."""
    pool = Pool(late_once(0.8), lambda _: 0.02)
    lowered: list[Any] = []
    slow = pool.workers[0]
    assert isinstance(slow, Slow)
    slow.refuses_first = True
    outcome, rows, _ = worked(pool, 60, lowered)
    assert rows == list(range(60 * ROWS)) and not lowered
    assert outcome.workers[0]["wasted_shards"] >= 1


SLOW = """
import itertools, os, time
try:
    os.close(os.open({mark!r}, os.O_CREAT | os.O_EXCL))
except FileExistsError:
    checksums, count = null.NullModel.forward, itertools.count()
    def forward(self, batch):
        time.sleep(1_000 if next(count) >= 3 else 0)
        return checksums(self, batch)
    null.NullModel.forward = forward
"""


def test_a_real_process_that_is_late_changes_no_byte(
    null_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first worker leaves a mark; the second one comes through the preview and no more than two shards."""
    rows, job = write_rows(tmp_path / "in.parquet", 600), {"text_column": "text", "shard_rows": 40}
    run(null_model, rows, tmp_path / "one", **job)
    plant(monkeypatch, tmp_path / "site", SLOW.format(mark=str(tmp_path / "first")))
    report = run(null_model, rows, tmp_path / "many", devices="cpu:2", **job)
    assert parts(tmp_path / "many") == parts(tmp_path / "one")
    assert report.rows == report.this_run.rows == sum(worker["rows"] for worker in report.workers) == 600
