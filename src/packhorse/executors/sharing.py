"""One run over several worker processes: who reads, who hands out, who commits."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import pyarrow as pa

from packhorse.executors.executor import Commit, Done, LowerBudget, Outcome, Stop, beside
from packhorse.executors.handing import AHEAD, HANDED, Handing, Task
from packhorse.executors.lanes import Breaker, Lane
from packhorse.executors.process import LOOK_S, WorkerGoneError, WorkerProcess
from packhorse.executors.tally import Tally
from packhorse.executors.wire import Message
from packhorse.executors.worker import Computed, Handed
from packhorse.metrics import LiveCounters
from packhorse.readers.cut import ShardRows
from packhorse.shard import Budget, Budgets


class Pool(Protocol):
    """The processes of a run."""

    workers: list[WorkerProcess]

    def handed(self, rows: ShardRows) -> tuple[Handed, pa.Table]: ...
    def kept(self, rows: ShardRows) -> pa.Table: ...
    def is_left(self, worker: WorkerProcess) -> bool: ...
    def start_again(self, worker: WorkerProcess, gone: WorkerGoneError) -> None: ...
    def kill(self) -> None: ...


class _Given(Done):
    """A shard as it is committed."""

    def __init__(self, task: Task, computed: Computed) -> None:
        self.shard, self.errors, self.counters = task.rows.shard, computed.errors, computed.counters
        self.counters.read_s = task.read_s


class SharedRun:
    """One run over all shards: a lane that reads, one for each worker, and the caller, which commits."""

    def __init__(
        self, pool: Pool, budgets: Budgets, commit: Commit, lower: LowerBudget, live: LiveCounters, stop: Stop
    ) -> None:
        self._pool, self._budgets, self._commit, self._lower, self._stop = pool, budgets, commit, lower, stop
        self._live, self._breaker = live, Breaker()
        self._handing = Handing(self._breaker, HANDED * len(pool.workers) + AHEAD)
        self._tally = Tally(live, len(pool.workers))
        self._lowering = threading.Lock()
        self._by: dict[int, int] = {}  # which worker computed a shard that is not committed yet

    def run(self, shards: Iterator[ShardRows]) -> Outcome:
        outcome = Outcome()
        lanes = [Lane("read", self._breaker, lambda: self._read(shards)), *map(self._lane, range(len(self._workers)))]
        for lane in lanes:
            lane.start()
        try:
            self._commit_all(outcome, lanes[1:])
        except BaseException as error:  # noqa: BLE001 - raised below, after the lanes have ended
            self._breaker.trip(error)
            self._pool.kill()
        for lane in lanes:
            lane.join()
        if self._breaker.error is not None:
            raise self._breaker.error
        self._tally.end()
        return self._counted(outcome)

    @property
    def _workers(self) -> list[WorkerProcess]:
        return self._pool.workers

    # -- reading

    def _read(self, shards: Iterator[ShardRows]) -> None:
        while not self._stop.event.is_set():
            begin = time.perf_counter()
            rows = next(shards, None)
            if rows is None or not self._handing.put(Task(rows, time.perf_counter() - begin)):
                break
        self._handing.close()

    # -- handing out

    def _lane(self, number: int) -> Lane:
        return Lane(f"worker {number}", self._breaker, lambda: self._work(number))

    def _work(self, number: int) -> None:
        worker = self._workers[number]
        while self._pool.is_left(worker) and not self._handing.is_over:
            try:
                if self._is_ready(worker):
                    self._begin(worker)
                    self._exchange(number, worker)
            except WorkerGoneError as gone:
                self._breaker.check()  # it was killed because another lane failed
                held, worker.held = worker.held, []
                self._tally.died(number)
                self._handing.give_back(held, str(gone))
                if not self._handing.is_over:
                    self._pool.start_again(worker, gone)

    def _is_ready(self, worker: WorkerProcess) -> bool:
        """Waits until it has loaded its model; False where it is not needed any more."""
        while worker.facts is None and not self._handing.is_over:
            self._breaker.check()
            worker.receive(LOOK_S)
        return worker.facts is not None

    def _begin(self, worker: WorkerProcess) -> None:
        with self._lowering:
            worker.send("budgets", self._budgets.entries)
        worker.send("run")

    def _exchange(self, number: int, worker: WorkerProcess) -> None:
        """Hands out and takes back until there is nothing more to do."""
        is_told = False
        while True:
            self._breaker.check()
            if not self._handing.is_over:
                self._top_up(worker)
            elif not is_told:
                worker.send("stop" if self._handing.is_stopping else "end")
                is_told = True
            message = worker.receive(LOOK_S if worker.held or is_told else 0)
            if message is not None and message.kind == "ended":
                worker.ended = message.values
                return
            if message is not None:
                self._take_back(number, worker, message)

    def _top_up(self, worker: WorkerProcess) -> None:
        """Waits a little for a shard where it has none."""
        while (task := self._handing.take(worker.held, 0 if worker.held else LOOK_S)) is not None:
            worker.held.append(task)
            handed, table = self._pool.handed(task.rows)
            worker.send("shard", handed, table)

    def _take_back(self, number: int, worker: WorkerProcess, message: Message) -> None:
        if message.kind == "progress":
            self._tally.progress(number, message.values)
        elif message.kind == "out_of_memory":
            self._lowered(worker, *message.values)
        elif message.kind == "done":
            computed: Computed = message.values
            task = next(task for task in worker.held if task.index == computed.shard.index)
            worker.held.remove(task)
            worker.restarts_in_a_row = 0
            self._by[task.index] = number
            self._tally.given_back(number, computed)
            self._handing.done(task, computed, message.table)

    def _lowered(self, worker: WorkerProcess, shard: int, seen: Budget) -> None:
        """Lowers the budget from that shard on, unless it was lowered meanwhile, and tells all workers."""
        with self._lowering:
            if self._budgets.at(shard) == seen:
                self._lower(shard, self._budgets.lower(shard))
            for other in self._workers:
                if other.facts is not None:
                    other.send("budgets", self._budgets.entries)

    # -- committing

    def _commit_all(self, outcome: Outcome, lanes: Sequence[Lane]) -> None:
        while True:
            is_last_look = not any(lane.is_alive() for lane in lanes)
            task = self._handing.next_done(0 if is_last_look else LOOK_S)
            if task is not None:
                self._commit_one(task, outcome)
            elif is_last_look:
                return
            if self._stop.event.is_set() and not self._handing.is_stopping:
                self._handing.stop()

    def _commit_one(self, task: Task, outcome: Outcome) -> None:
        assert task.computed is not None
        if task.computed.budget != self._budgets.at(task.index):
            self._tally.taken_back(self._by.pop(task.index), task.computed)
            self._handing.again(task)
            return
        done = _Given(task, task.computed)
        with done.counters.timed("write_s"):
            self._commit(done, beside(self._pool.kept(task.rows), task.table))
        outcome.counters += done.counters
        self._by.pop(task.index)
        self._handing.committed(task)

    # -- the report

    def _counted(self, outcome: Outcome) -> Outcome:
        ended = [worker.ended for worker in self._workers if worker.ended is not None]
        outcome.wait_input_s = sum(e.wait_input_s for e in ended) / max(len(ended), 1)
        outcome.wait_output_s = sum(e.wait_output_s for e in ended) / max(len(ended), 1)
        outcome.workers = [self._of(number) for number in range(len(self._workers))]
        return outcome

    def _of(self, number: int) -> dict[str, Any]:
        worker, tally = self._workers[number], self._tally.workers[number]
        counters = tally.counters
        return {
            "device": worker.device,
            "rows": counters.rows,
            "real_tokens": counters.real_tokens,
            "busy_share": min(counters.compute_s / self._live.elapsed_s, 1.0),
            "shards": tally.shards,
            "restarts": worker.restarts,
            "peak_bytes": worker.ended.peak_bytes if worker.ended else None,
        }
