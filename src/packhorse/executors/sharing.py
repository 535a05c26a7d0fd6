"""One run over several worker processes: who reads, who hands out, who commits."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import pyarrow as pa

from packhorse.executors.executor import Commit, Done, LowerBudget, Outcome, Stop, beside, next_shard
from packhorse.executors.handing import AHEAD, HANDED, WORKER_BYTES, Handing, Task
from packhorse.executors.lanes import Breaker, Lane
from packhorse.executors.process import LOOK_S, WorkerGoneError, WorkerProcess
from packhorse.executors.tally import Tally
from packhorse.executors.wire import Message
from packhorse.executors.worker import Computed, Entries, Handed
from packhorse.metrics import LiveCounters
from packhorse.readers.cut import ShardRows
from packhorse.shard import Budget, Budgets

STRAGGLER_S = 2.0  # that a worker which computes what nobody needs is given to end its batch once all is committed
LOOKS_PER_S = 640  # of all workers that compute, at what wakes nobody: 1,000 at 20 a second each fill a core


class Pool(Protocol):
    """The processes of a run."""

    workers: list[WorkerProcess]

    def handed(self, rows: ShardRows) -> tuple[Handed, pa.Table]: ...
    def kept(self, rows: ShardRows) -> pa.Table: ...
    def is_left(self, worker: WorkerProcess) -> bool: ...
    def start_again(self, worker: WorkerProcess, gone: WorkerGoneError) -> None: ...
    def end(self, worker: WorkerProcess) -> None: ...
    def kill(self) -> None: ...
    def say(self, line: str) -> None: ...


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
        count = len(pool.workers)
        self._handing = Handing(self._breaker, HANDED * count + AHEAD, WORKER_BYTES * count)
        self._tally = Tally(live, count)
        self._lowering = threading.Lock()
        self._begun_s = [0.0] * count  # when each worker began with the shard that it computes
        self._own: dict[int, Entries] = {}  # budgets that a worker is told beside those of all
        self._look_s = max(LOOK_S, count / LOOKS_PER_S)

    def run(self, shards: Iterator[ShardRows]) -> Outcome:
        outcome = Outcome()
        lanes = [Lane("read", self._breaker, lambda: self._read(shards)), *map(self._lane, range(len(self._workers)))]
        for lane in lanes:
            lane.start()
        try:
            self._commit_all(outcome, lanes[1:])
        except BaseException as error:  # noqa: BLE001 - raised below, after the lanes have ended
            self._breaker.trip(error)
            self._stop.has_failed = True
            self._pool.kill()
        for lane in lanes:
            lane.join()
        self._stop.has_failed = False
        if self._breaker.error is not None:
            raise self._breaker.error
        self._tally.end()
        self._say_wasted()
        return self._counted(outcome)

    @property
    def _workers(self) -> list[WorkerProcess]:
        return self._pool.workers

    # -- reading

    def _read(self, shards: Iterator[ShardRows]) -> None:
        while not self._stop.event.is_set():
            begin = time.perf_counter()
            rows = next_shard(shards)
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
                    self._begin(number, worker)
                    self._exchange(number, worker)
            except WorkerGoneError as gone:
                self._breaker.check()  # it was killed because another lane failed
                held = self._left_behind(number, worker)
                self._handing.give_back(held, str(gone))
                if not self._handing.is_over:
                    self._pool.start_again(worker, gone)

    def _is_ready(self, worker: WorkerProcess) -> bool:
        """Waits until it has loaded its model; False where it is not needed any more."""
        while worker.facts is None and not self._handing.is_over:
            self._breaker.check()
            worker.receive(LOOK_S)
        return worker.facts is not None

    def _begin(self, number: int, worker: WorkerProcess) -> None:
        with self._lowering:
            self._own.pop(number, None)
            self._tell_budgets(number)
        worker.send("run")

    def _exchange(self, number: int, worker: WorkerProcess) -> None:
        """Hands out and takes back until there is nothing more to do."""
        while not self._handing.is_over:
            self._breaker.check()
            self._top_up(number, worker)
            message = worker.receive(self._look_s if worker.held else 0)
            if message is not None:
                self._take_back(number, worker, message)
        is_straggling = bool(worker.held) and not self._handing.is_stopping  # another was faster: all is committed
        worker.send("end" if not worker.held else "stop")
        self._hear_out(number, worker, STRAGGLER_S if is_straggling else math.inf)
        self._left_behind(number, worker)

    def _hear_out(self, number: int, worker: WorkerProcess, seconds: float) -> None:
        """Takes back until it has ended its run; after so many seconds it is ended."""
        end_s = time.monotonic() + seconds
        while time.monotonic() < end_s:
            self._breaker.check()
            message = worker.receive(LOOK_S)
            if message is not None and message.kind == "ended":
                worker.ended = message.values
                return
            if message is not None:
                self._take_back(number, worker, message)
        self._pool.end(worker)

    def _left_behind(self, number: int, worker: WorkerProcess) -> list[Task]:
        """What it held when it ended, and will not give back."""
        held, worker.held = worker.held, []
        self._tally.died(number)
        return held

    def _top_up(self, number: int, worker: WorkerProcess) -> None:
        """Waits a little for a shard where it has none."""
        while (task := self._handing.take(worker.held, 0 if worker.held else self._look_s)) is not None:
            if not worker.held:
                self._begun_s[number] = time.monotonic()
            worker.held.append(task)
            handed, table = self._pool.handed(task.rows)
            worker.send("shard", handed, table)

    def _take_back(self, number: int, worker: WorkerProcess, message: Message) -> None:
        if message.kind == "progress":
            self._tally.progress(number, message.values)
        elif message.kind == "out_of_memory":
            self._lowered(number, *message.values)
        elif message.kind == "done":
            self._given_back(number, worker, message.values, message.table)

    def _given_back(self, number: int, worker: WorkerProcess, computed: Computed, table: pa.Table) -> None:
        task = next(task for task in worker.held if task.index == computed.shard.index)
        worker.held.remove(task)
        worker.restarts_in_a_row = 0
        begun_s, self._begun_s[number] = self._begun_s[number], time.monotonic()
        counts = self._handing.done(task, computed, table, number, self._begun_s[number] - begun_s)
        (self._tally.given_back if counts else self._tally.wasted)(number, computed)
        if number in self._own:
            with self._lowering:
                del self._own[number]
                self._tell_budgets(number)

    # -- budgets

    def _lowered(self, number: int, shard: int, seen: Budget) -> None:
        """Lowers the budget from that shard on, unless it was lowered meanwhile, and tells all workers. Where another
        worker computed the shard meanwhile, under that budget, it holds for all others: only this one is told less."""
        with self._lowering:
            if not self._handing.is_wanted(shard):
                self._own[number] = [(shard, seen.halved())]
                self._tell_budgets(number)
                return
            if self._budgets.at(shard) == seen:
                self._lower(shard, self._budgets.lower(shard))
            for other in range(len(self._workers)):
                self._tell_budgets(other)

    def _tell_budgets(self, number: int) -> None:
        worker = self._workers[number]
        if worker.facts is not None:
            worker.send("budgets", [*self._budgets.entries, *self._own.get(number, [])])

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
        with self._lowering:  # it may be lowered for this shard by a worker that computes it too
            is_stale = task.computed.budget != self._budgets.at(task.index)
        if is_stale:
            self._tally.taken_back(task.by, task.computed)
            self._handing.again(task)
            return
        done = _Given(task, task.computed)
        with done.counters.timed("write_s"):
            self._commit(done, beside(self._pool.kept(task.rows), task.table))
        outcome.counters += done.counters
        self._handing.committed(task)

    # -- the report

    def _say_wasted(self) -> None:
        shards = sum(worker.wasted_shards for worker in self._tally.workers)
        if shards:
            rows = sum(worker.wasted_rows for worker in self._tally.workers)
            self._pool.say(
                f"{rows:,} rows of {shards:,} shards were computed twice, because a device was late with them; each "
                "counts once"
            )

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
            "busy_share": min((counters.compute_s + tally.wasted_s) / self._live.elapsed_s, 1.0),
            "shards": tally.shards,
            "wasted_rows": tally.wasted_rows,
            "wasted_shards": tally.wasted_shards,
            "restarts": worker.restarts,
            "peak_bytes": worker.ended.peak_bytes if worker.ended else None,
        }
