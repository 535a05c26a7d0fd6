"""Which shard goes to whom: handed out in order, once more where one is late, redone where a worker died, given on in
order. No processes here."""

from __future__ import annotations

import statistics
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice

import pyarrow as pa

from packhorse.errors import WorkerDiedError
from packhorse.executors.lanes import Breaker
from packhorse.executors.worker import Computed
from packhorse.readers.cut import ShardRows

HANDED = 2  # shards that a worker holds: one is computed, one tokenized meanwhile
AHEAD = 2  # shards beyond those that workers hold: read, or done and waiting for an earlier one
WIDER = 2  # times as many may be open while all are handed out and an early one keeps the others from being committed
WORKER_BYTES = 64 << 20  # of open shards, for each worker: beyond it the window is not made wider
LATE = 2.0  # times the median of finished shards: a shard that is out for longer is computed once more
LATE_S = 1.0  # more than was to be expected, at least: below it a second copy gains nothing
PACES = 101  # shards that the median is of: the last ones
LOOKED_AT = 4  # shards that are looked at for one that is late, of those that are out for the longest
LOOK_S = 0.1  # between two looks of the reading lane at whether another lane failed


@dataclass(eq=False)
class Task:
    """A shard until it is committed."""

    rows: ShardRows
    read_s: float
    deaths: int = 0  # workers that died while they held it
    computed: Computed | None = None
    table: pa.Table | None = None
    by: int = -1  # the worker whose result counts
    holders: int = 0  # workers that compute it
    handed_s: float = 0.0  # when it was handed out
    ahead: int = 0  # shards that its worker held already
    num_bytes: int = 0  # of its rows, and of what was computed

    @property
    def index(self) -> int:
        return self.rows.shard.index

    @property
    def num_rows(self) -> int:
        return max(self.rows.shard.num_rows, 1)


class Handing:
    """The shards between reading and commit, at most `window` of them, or WIDER times as many within `max_bytes`, so
    that memory stays bounded.

    A shard that is late is handed to a worker that has nothing else to do once more, and the first result counts: the
    backup tasks of Dean and Ghemawat, MapReduce (OSDI 2004), section 3.6.
    """

    def __init__(
        self, breaker: Breaker, window: int, max_bytes: int = 0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """clock: in seconds."""
        self._breaker, self._window, self._max_bytes, self._clock = breaker, window, max_bytes, clock
        self._lock = threading.Lock()
        # Each change wakes who can go on: with a thousand workers waking all of them costs more than their work.
        self._room, self._work, self._first_done = (threading.Condition(self._lock) for _ in range(3))
        self._open: dict[int, Task] = {}  # by index: all that are not committed
        self._waiting: dict[int, Task] = {}  # those that nobody holds
        self._out: dict[int, Task] = {}  # those that one worker holds, in the order in which they were handed out
        self._next: int | None = None  # index of the next to be committed
        self._is_read = self.is_stopping = False
        self._num_bytes = 0
        self._paces: deque[float] = deque(maxlen=PACES)  # seconds a row of the last shards
        self._pace_s: float | None = None  # their median

    # -- the reading lane

    @property
    def has_room(self) -> bool:
        """Whether another shard may be read."""
        if len(self._open) < self._window:
            return True
        is_starved = not self._waiting and self._num_bytes < self._max_bytes
        return is_starved and len(self._open) < WIDER * self._window

    def put(self, task: Task) -> bool:
        """Waits for room; False where the run is being stopped."""
        task.num_bytes = task.rows.table.nbytes
        with self._lock:
            while not self._room.wait_for(lambda: self.is_stopping or self.has_room, LOOK_S):
                self._breaker.check()
            self._breaker.check()
            if self.is_stopping:
                return False
            self._next = task.index if self._next is None else self._next
            self._open[task.index] = task
            self._num_bytes += task.num_bytes
            self._to_be_handed([task])
            return True

    def close(self) -> None:
        """No more shards will come."""
        with self._lock:
            self._is_read = True
            self._work.notify_all()

    # -- workers

    @property
    def is_over(self) -> bool:
        """Whether no shard will be handed out any more."""
        return self.is_stopping or (self._is_read and not self._open)

    @property
    def num_waiting(self) -> int:
        """Shards that nobody holds."""
        return len(self._waiting)

    def is_wanted(self, index: int) -> bool:
        """Whether no result of that shard counts so far."""
        task = self._open.get(index)
        return task is not None and task.computed is None

    def take(self, held: Sequence[Task], timeout_s: float) -> Task | None:
        """The first shard that a worker which holds these may have; waits for one so long.

        A shard whose worker died is handed out alone: where that worker dies too, it is known which shard it was. Who
        holds nothing and finds nothing that waits is handed one that is late.
        """
        with self._lock:
            self._work.wait_for(
                lambda: self.is_over or self._breaker.error is not None or self._for(held) is not None, timeout_s
            )
            self._breaker.check()
            task = None if self.is_over else self._for(held)
            if task is not None:
                self._hand(task, len(held))
            return task

    def _for(self, held: Sequence[Task]) -> Task | None:
        task = self._first(held)
        return self._late() if task is None and not held else task

    def _first(self, held: Sequence[Task]) -> Task | None:
        if len(held) >= HANDED or any(task.deaths for task in held):
            return None
        fitting = [task for task in self._waiting.values() if not (held and task.deaths)]
        return min(fitting, key=lambda task: task.index, default=None)

    def _late(self) -> Task | None:
        if self._pace_s is None:
            return None
        now = self._clock()
        late = (task for task in islice(self._out.values(), LOOKED_AT) if now - task.handed_s > self._allowed_s(task))
        return min(late, key=lambda task: task.index, default=None)

    def _allowed_s(self, task: Task) -> float:
        """From when it is handed out, behind those that its worker held already."""
        median_s = (self._pace_s or 0.0) * task.num_rows
        return median_s * task.ahead + max(LATE * median_s, median_s + LATE_S)

    def _hand(self, task: Task, ahead: int) -> None:
        self._waiting.pop(task.index, None)
        self._out.pop(task.index, None)
        task.holders += 1
        if task.holders == 1:
            task.handed_s, task.ahead = self._clock(), ahead
            self._out[task.index] = task
        self._room.notify()

    def _to_be_handed(self, tasks: Sequence[Task]) -> None:
        for task in tasks:
            self._out.pop(task.index, None)
            self._waiting[task.index] = task
        self._work.notify(len(tasks))

    def give_back(self, held: Sequence[Task], how: str) -> None:
        """Shards that a worker held when it ended; how it did. Those that another computed meanwhile are forgotten,
        those that another computes are left to it.

        Raises WorkerDiedError where one shard was the end of two workers in a row.
        """
        with self._lock:
            wanted = [task for task in held if self.is_wanted(task.index)]
            if len(held) == len(wanted) == 1 and held[0].deaths:
                raise _died_twice(held[0], how)
            for task in held:
                task.holders -= 1
            for task in wanted:
                task.deaths += 1
                self._out.pop(task.index, None)
            self._to_be_handed([task for task in wanted if not task.holders])

    def done(self, task: Task, computed: Computed, table: pa.Table, by: int = 0, took_s: float | None = None) -> bool:
        """Whether the result counts: not where another worker's was here first.

        by: the worker. took_s: seconds that it worked on this shard alone.
        """
        with self._lock:
            task.holders -= 1
            if took_s is not None:
                self._paces.append(took_s / task.num_rows)
                self._pace_s = statistics.median(self._paces)
            if not self.is_wanted(task.index):
                return False
            task.computed, task.table, task.by, task.deaths = computed, table, by, 0
            self._waiting.pop(task.index, None)
            self._out.pop(task.index, None)
            self._grow(task, 0 if table is None else table.nbytes)
            if task.index == self._next:
                self._first_done.notify()
            return True

    def _grow(self, task: Task, num_bytes: int) -> None:
        task.num_bytes += num_bytes
        self._num_bytes += num_bytes

    # -- the main lane

    def next_done(self, timeout_s: float) -> Task | None:
        """The next shard in order, once it is computed; waits for it so long."""
        with self._lock:
            self._first_done.wait_for(lambda: self._breaker.error is not None or self._ready() is not None, timeout_s)
            self._breaker.check()
            return self._ready()

    def _ready(self) -> Task | None:
        task = None if self._next is None else self._open.get(self._next)
        return task if task is not None and task.computed is not None else None

    def again(self, task: Task) -> None:
        """What was computed does not count: another budget holds for it now."""
        with self._lock:
            self._grow(task, 0 if task.table is None else -task.table.nbytes)
            task.computed = task.table = None
            self._to_be_handed([task])

    def committed(self, task: Task) -> None:
        with self._lock:
            del self._open[task.index]
            self._num_bytes -= task.num_bytes
            self._next = task.index + 1
            self._room.notify()
            if self.is_over:
                self._work.notify_all()

    def stop(self) -> None:
        """No shard is handed out any more."""
        with self._lock:
            self.is_stopping = True
            self._work.notify_all()
            self._room.notify_all()


def _died_twice(task: Task, how: str) -> WorkerDiedError:
    shard = task.rows.shard
    last_row = shard.first_row + shard.num_rows - 1
    return WorkerDiedError(
        f"shard {shard.index}, rows {shard.first_row:,} to {last_row:,}: two worker processes in a row ended while "
        f"they computed it, the last one {how}. What was committed stays; the same command goes on there"
    )
