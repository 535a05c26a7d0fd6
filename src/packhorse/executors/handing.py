"""Which shard goes to whom: handed out in order, redone where a worker died, given on in order. No processes here."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa

from packhorse.errors import WorkerDiedError
from packhorse.executors.lanes import Breaker
from packhorse.executors.worker import Computed
from packhorse.readers.cut import ShardRows

HANDED = 2  # shards that a worker holds: one is computed, one tokenized meanwhile
AHEAD = 2  # shards beyond those that workers hold: read, or done and waiting for an earlier one


@dataclass(eq=False)
class Task:
    """A shard until it is committed."""

    rows: ShardRows
    read_s: float
    deaths: int = 0  # workers that died while they held it
    computed: Computed | None = None
    table: pa.Table | None = None

    @property
    def index(self) -> int:
        return self.rows.shard.index


class Handing:
    """The shards between reading and commit, at most `window` of them, so that memory stays bounded."""

    def __init__(self, breaker: Breaker, window: int) -> None:
        self._breaker, self._window = breaker, window
        self._changed: threading.Condition = breaker.changed
        self._open: dict[int, Task] = {}  # by index: all that are not committed
        self._waiting: dict[int, Task] = {}  # those that nobody holds
        self._next: int | None = None  # index of the next to be committed
        self._is_read = self.is_stopping = False

    # -- the reading lane

    def put(self, task: Task) -> bool:
        """Waits for room; False where the run is being stopped."""
        with self._changed:
            self._changed.wait_for(
                lambda: self.is_stopping or self._breaker.error is not None or len(self._open) < self._window
            )
            self._breaker.check()
            if self.is_stopping:
                return False
            self._next = task.index if self._next is None else self._next
            self._open[task.index] = self._waiting[task.index] = task
            self._changed.notify_all()
            return True

    def close(self) -> None:
        """No more shards will come."""
        with self._changed:
            self._is_read = True
            self._changed.notify_all()

    # -- workers

    @property
    def is_over(self) -> bool:
        """Whether no shard will be handed out any more."""
        return self.is_stopping or (self._is_read and not self._open)

    def take(self, held: Sequence[Task], timeout_s: float) -> Task | None:
        """The first shard that a worker which holds these may have; waits for one so long.

        A shard whose worker died is handed out alone: where that worker dies too, it is known which shard it was.
        """
        with self._changed:
            self._changed.wait_for(
                lambda: self.is_over or self._breaker.error is not None or self._first(held) is not None, timeout_s
            )
            self._breaker.check()
            task = None if self.is_over else self._first(held)
            return None if task is None else self._waiting.pop(task.index)

    def _first(self, held: Sequence[Task]) -> Task | None:
        if len(held) >= HANDED or any(task.deaths for task in held):
            return None
        fitting = [task for task in self._waiting.values() if not (held and task.deaths)]
        return min(fitting, key=lambda task: task.index, default=None)

    def give_back(self, held: Sequence[Task], how: str) -> None:
        """Shards that a worker held when it ended; how it did.

        Raises WorkerDiedError where one shard was the end of two workers in a row.
        """
        if len(held) == 1 and held[0].deaths:
            shard = held[0].rows.shard
            last_row = shard.first_row + shard.num_rows - 1
            raise WorkerDiedError(
                f"shard {shard.index}, rows {shard.first_row:,} to {last_row:,}: two worker processes in a row ended "
                f"while they computed it, the last one {how}. What was committed stays; the same command goes on there"
            )
        with self._changed:
            for task in held:
                task.deaths += 1
                self._waiting[task.index] = task
            self._changed.notify_all()

    def done(self, task: Task, computed: Computed, table: pa.Table) -> None:
        with self._changed:
            task.computed, task.table, task.deaths = computed, table, 0
            self._changed.notify_all()

    # -- the main lane

    def next_done(self, timeout_s: float) -> Task | None:
        """The next shard in order, once it is computed; waits for it so long."""
        with self._changed:
            self._changed.wait_for(lambda: self._breaker.error is not None or self._ready() is not None, timeout_s)
            self._breaker.check()
            return self._ready()

    def _ready(self) -> Task | None:
        task = None if self._next is None else self._open.get(self._next)
        return task if task is not None and task.computed is not None else None

    def again(self, task: Task) -> None:
        """What was computed does not count: another budget holds for it now."""
        with self._changed:
            task.computed = task.table = None
            self._waiting[task.index] = task
            self._changed.notify_all()

    def committed(self, task: Task) -> None:
        with self._changed:
            del self._open[task.index]
            self._next = task.index + 1
            self._changed.notify_all()

    def stop(self) -> None:
        """No shard is handed out any more."""
        with self._changed:
            self.is_stopping = True
            self._changed.notify_all()
