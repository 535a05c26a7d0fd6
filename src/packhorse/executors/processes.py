"""The shards of a job over several processes, one a device: the coordinator reads, hands out and commits in order."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import Any, Self

import pyarrow as pa

from packhorse.devices.host import rss_peak_bytes
from packhorse.errors import WorkerDiedError
from packhorse.executors.executor import Commit, LowerBudget, Outcome, Stop
from packhorse.executors.process import END_S, LOOK_S, WorkerGoneError, WorkerProcess
from packhorse.executors.sharing import SharedRun
from packhorse.executors.wire import Message
from packhorse.executors.worker import Facts, Handed
from packhorse.metrics import LiveCounters
from packhorse.readers.cut import ShardRows
from packhorse.shard import Budget, Budgets

MAX_RESTARTS = 3  # in a row, without a shard in between

Say = Callable[[str], None]


class Processes:
    """An Executor: one worker process for each device, named twice where it is to have two."""

    def __init__(
        self, module: str, devices: Sequence[str], specs: Sequence[Any], needs: Sequence[str], keep: Sequence[str],
        say: Say, check: Callable[[], None], one_first: bool = False,
    ) -> None:  # fmt: skip
        """Starts them, and waits until one has loaded its model.

        module: of the workers' main(). specs: what each is told to load. needs: columns that the model needs; only
        these travel. keep: columns that are written. check: called now and then while it waits, may raise. one_first:
        the first loads what it exports or converts before the others begin. Raises WorkerDiedError, and what loading
        raises.
        """
        self._needs, self._keep, self._say = list(needs), list(keep), say
        self.workers = [self.new_worker(module, *given) for given in zip(devices, specs, strict=True)]
        self._left: list[WorkerProcess] = []
        self._starting = threading.Lock()
        try:
            first, *others = self.workers
            self._start([first])
            if one_first:
                self._some_worker(check)
            self._start(others)
            self._facts: Facts = self._some_worker(check).facts or Facts(0, 0)
        except BaseException:
            self.kill()
            raise

    def new_worker(self, module: str, device: str, spec: Any) -> WorkerProcess:
        """One that is not started yet."""
        return WorkerProcess(module, device, spec)

    @property
    def width(self) -> int:
        return self._facts.width

    @property
    def weight_bytes(self) -> int:
        return self._facts.weight_bytes

    @property
    def peak_bytes(self) -> int:
        return rss_peak_bytes() + sum(w.ended.peak_bytes for w in self.workers if w.ended)

    @property
    def device_peak_bytes(self) -> int | None:
        known = [w.ended.device_peak_bytes for w in self.workers if w.ended and w.ended.device_peak_bytes is not None]
        return max(known, default=None)

    def texts(self, rows: ShardRows) -> list[str | None]:
        texts: list[str | None] = self._asked("texts", rows, Budget(1, 1)).values
        return texts

    def predict(self, rows: ShardRows, budget: Budget) -> pa.Table:
        return self._asked("predict", rows, budget).table

    def run(
        self, shards: Iterator[ShardRows], budgets: Budgets, commit: Commit, lower: LowerBudget, live: LiveCounters,
        stop: Stop,
    ) -> Outcome:  # fmt: skip
        return SharedRun(self, budgets, commit, lower, live, stop).run(shards)

    def wait_for_all(self, check: Callable[[], None]) -> None:
        """Until those that are left have loaded their model. check: may raise."""
        while any(worker.facts is None for worker in self._left):
            for worker in [w for w in self._left if w.facts is None]:
                check()
                try:
                    worker.receive(LOOK_S)
                except WorkerGoneError as gone:
                    self.start_again(worker, gone)

    def close(self) -> None:
        """Ends the processes that are left; one that still loads its model would hear of it only afterwards."""
        deadline_s = time.monotonic() + END_S
        for worker in self._left:
            worker.send("close")
        for worker in self._left:
            worker.close(deadline_s if worker.facts is not None else 0)
        self._left = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self.kill()
        self.close()

    def kill(self) -> None:
        """The same at once; none is started again."""
        with self._starting:
            for worker in self._left:
                worker.kill()
            self._left = []

    # -- one worker

    def handed(self, rows: ShardRows) -> tuple[Handed, pa.Table]:
        """What a worker is told of a shard."""
        return Handed(rows.shard, rows.errors), rows.table.select(self._needs)

    def kept(self, rows: ShardRows) -> pa.Table:
        return rows.table.select(self._keep)

    def say(self, line: str) -> None:
        self._say(line)

    def is_left(self, worker: WorkerProcess) -> bool:
        """Whether it is not left out, or killed for good."""
        return worker in self._left

    def end(self, worker: WorkerProcess) -> None:
        """At once, for good: nobody needs what it computes."""
        with self._starting:
            if worker in self._left:
                self._left.remove(worker)
                worker.close(0)

    def start_again(self, worker: WorkerProcess, gone: WorkerGoneError) -> None:
        """Or leaves it out. Raises WorkerDiedError where none is left."""
        with self._starting:
            if worker not in self._left:
                return
            if worker.restarts_in_a_row < MAX_RESTARTS:
                self._say(f"the worker process on {worker.device} {gone}; it is started again")
                worker.restart()
                return
            worker.kill()
            self._left.remove(worker)
            often = f"after {MAX_RESTARTS} restarts without a shard in between"
        many = f"the worker process on {worker.device} {gone}, {often}"
        if not self._left:
            raise WorkerDiedError(f"{many}; no other is left. What was committed stays; the same command goes on there")
        self._say(f"{many}: it is left out")

    def _start(self, workers: Sequence[WorkerProcess]) -> None:
        for worker in workers:
            worker.start()
            self._left.append(worker)

    def _some_worker(self, check: Callable[[], None] = lambda: None) -> WorkerProcess:
        """The first that has loaded its model."""
        while True:
            for worker in list(self._left):
                check()
                try:
                    while worker.facts is None and worker.receive(LOOK_S / len(self._left)) is not None:
                        pass
                except WorkerGoneError as gone:
                    self.start_again(worker, gone)
                if worker.facts is not None and worker in self._left:
                    return worker

    def _asked(self, kind: str, rows: ShardRows, budget: Budget) -> Message:
        handed, table = self.handed(rows)
        while True:
            worker = self._some_worker()
            worker.send(kind, (handed, budget), table)
            try:
                while (message := worker.receive(LOOK_S)) is None or message.kind != "answer":
                    pass
                return message
            except WorkerGoneError as gone:
                self.start_again(worker, gone)
