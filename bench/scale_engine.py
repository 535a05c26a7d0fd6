"""The engine of scale_simulation.py: a job as a row of events.

Real are the code that hands shards out and gives them on in order (executors/handing.py), that says how many rows a
shard has (readers/cut.py) and the run folder with its records (outputs/manifest.py), on a store in memory. Simulated
are the clock, the devices, their failures and what a store's answers take. The same seed gives the same figures; only
cpu_us_per_shard is measured.
"""

from __future__ import annotations

import heapq
import tempfile
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa

from bench.scale_world import Devices, SimulatedStore, World
from packhorse.data import Position, Shard
from packhorse.errors import WorkerDiedError
from packhorse.executors.handing import HANDED, Handing, Task
from packhorse.executors.lanes import Breaker
from packhorse.executors.worker import Computed
from packhorse.metrics import Counters
from packhorse.outputs.manifest import RunFolder
from packhorse.outputs.records import Commit
from packhorse.readers.cut import ShardRows, rows_allowed
from packhorse.shard import Budget

OUTPUT_ROW_BYTES = 8
TOKENS_PER_ROW = 13
NOTHING = pa.table({})
BUDGET = Budget(16_384, None)


@dataclass
class Figures:
    """Of one simulated job, in simulated seconds."""

    wall_s: float = 0.0
    busy_s: float = 0.0  # of all devices, for shards that were given back
    lost_s: float = 0.0  # of devices that died in the middle of a shard
    tail_s: float = 0.0  # from when the first device has nothing more to do
    shards: int = 0
    rows: int = 0
    deaths: int = 0
    restarts: int = 0  # of the whole job, from its last commit: a shard was the end of two workers in a row
    commit_busy_s: float = 0.0  # of the lane that commits
    record_bytes: int = 0
    cpu_us_per_shard: float = 0.0  # of the real code, on the machine that simulates
    efficiency: float = 0.0


class BackedHanding(Handing):
    """What could be: who has nothing to do computes the shard that all others wait for once more, and the first result
    counts (the backup tasks of Dean and Ghemawat, MapReduce, OSDI 2004, 3.6). Outputs are the same bytes."""

    def __init__(self, breaker: Breaker, window: int) -> None:
        super().__init__(breaker, window)
        self._backed: set[int] = set()

    def take(self, held: Sequence[Task], timeout_s: float) -> Task | None:
        task = super().take(held, timeout_s)
        if task is not None or held or self.is_over:
            return task
        running = (t for t in self._open.values() if t.computed is None and t.index not in self._backed)
        task = min(running, key=lambda t: t.index, default=None)
        if task is not None:
            self._backed.add(task.index)
        return task


@dataclass
class _Device:
    number: int
    held: list[Task] = field(default_factory=list)
    life: int = 0  # counts its deaths: what an earlier life had begun is not finished
    is_up: bool = False
    began_s = last_s = 0.0


class Simulation:
    """`run()` plays the events in the order of their times."""

    def __init__(self, world: World, scratch: Path) -> None:
        self.world, self.figures = world, Figures()
        self.store = SimulatedStore(world.put_s, world.seed, scratch)
        self.folder = RunFolder("sim://out", is_file=False, store=self.store)
        self.folder.write_manifest({"plan": {}, "budgets": [[0, BUDGET.max_batch_tokens, None]], "finished": False})
        self._random = Devices(world)
        self._devices = [_Device(number) for number in range(world.devices)]
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._num_events, self._now = 0, 0.0
        self._next_row = self._next_index = 0
        self._cpu_s = 0.0

    def run(self) -> Figures:
        for device in self._devices:
            self._at(self._random.ready_s[device.number], partial(self._up, device))
        self._begin()
        while self._events and not self._is_done:
            self._now, _, event = heapq.heappop(self._events)
            try:
                event()
            except WorkerDiedError:
                self._restart()
        return self._summed()

    @property
    def _is_done(self) -> bool:
        return self.figures.rows >= self.world.rows

    def _at(self, seconds: float, event: Callable[[], None]) -> None:
        self._num_events += 1
        heapq.heappush(self._events, (seconds, self._num_events, event))

    def _begin(self) -> None:
        self._handing = (BackedHanding if self.world.has_backups else Handing)(Breaker(), self.world.window)
        self._num_open = self._num_waiting = 0
        self._is_committing = False
        self._read: Task | None = None  # it waits for room
        self._empty: deque[_Device] = deque()  # devices that hold nothing
        self._half: deque[_Device] = deque()  # and those that may have one more
        self._read_next(self._handing)

    def _restart(self) -> None:
        """The run ended with an error; the same command goes on after the last record."""
        self.figures.restarts += 1
        self._next_row, self._next_index = self.figures.rows, self.figures.shards
        self._begin()
        for device in self._devices:
            device.held, device.is_up = [], False
            device.life += 1
            self._at(self._now + self.world.restart_s, partial(self._up, device))

    # -- the reading lane

    def _read_next(self, handing: Handing) -> None:
        if self._next_row >= self.world.rows:
            handing.close()
            return
        allowed = rows_allowed(self._next_index, self.world.shard_rows, OUTPUT_ROW_BYTES)
        rows = min(allowed, self.world.rows - self._next_row)
        end = self._next_row + rows
        shard = Shard(self._next_index, self._next_row, rows, Position(0, self._next_row), Position(0, end))
        self._next_row, self._next_index = end, self._next_index + 1
        task = Task(ShardRows(shard, NOTHING, {}), 0.0)
        self._at(self._now + rows * self.world.read_s_per_row, lambda: self._was_read(handing, task))

    def _was_read(self, handing: Handing, task: Task) -> None:
        if handing is not self._handing:  # of a run that ended
            return
        if self._num_open >= self.world.window:
            self._read = task
            return
        self._timed(lambda: handing.put(task))
        self._num_open += 1
        self._num_waiting += 1
        self._read_next(handing)
        self._hand_out()

    # -- devices

    def _up(self, device: _Device) -> None:
        device.is_up = True
        self._empty.append(device)
        life = device.life
        self._at(self._now + self._random.alive_s(device.number), lambda: self._die(device, life))
        self._hand_out()

    def _hand_out(self) -> None:
        """To those that hold nothing first, in turn; each is asked once."""
        for hungry in (self._empty, self._half):
            for _ in range(len(hungry)):
                if not self._num_waiting and (hungry is self._half or not self.world.has_backups):
                    return
                if not self._offer(hungry.popleft(), hungry):
                    break

    def _offer(self, device: _Device, hungry: deque[_Device]) -> bool:
        """Whether another one of the queue may have better luck."""
        if not device.is_up or len(device.held) != (hungry is self._half):
            return True  # it stands in the other queue, or is gone
        was_waiting = self._num_waiting > 0
        task = self._timed(partial(self._handing.take, device.held, 0))
        if task is None:  # a shard whose worker died is handed out alone
            hungry.append(device)
            return any(held.deaths for held in device.held)
        self._num_waiting -= was_waiting
        device.held.append(task)
        if len(device.held) == 1:
            self._compute(device)
        if len(device.held) < HANDED:
            self._half.append(device)
        return True

    def _compute(self, device: _Device) -> None:
        device.began_s, life, task = self._now, device.life, device.held[0]
        seconds = self._random.compute_s(device.number, task.rows.shard.num_rows)
        self._at(self._now + seconds, lambda: self._computed(device, life, task, seconds))

    def _computed(self, device: _Device, life: int, task: Task, seconds: float) -> None:
        if life != device.life:
            return
        device.held.remove(task)
        device.last_s = self._now
        if task.computed is None:
            self.figures.busy_s += seconds
        else:  # another was faster
            self.figures.lost_s += seconds
        computed = Computed(task.rows.shard, {}, counters_of(task.rows.shard), BUDGET)
        self._timed(lambda: self._handing.done(task, computed, NOTHING))
        if device.held:
            self._compute(device)
        (self._half if device.held else self._empty).append(device)
        self._commit_next()
        self._hand_out()

    def _die(self, device: _Device, life: int) -> None:
        if life != device.life:
            return
        held, device.held, device.is_up = device.held, [], False
        device.life += 1
        self.figures.deaths += 1
        self.figures.lost_s += self._now - device.began_s if held else 0.0
        self._at(self._now + self.world.restart_s, lambda: self._up(device))
        self._handing.give_back(held, "was lost")
        self._num_waiting += len(held)
        self._hand_out()

    # -- the lane that commits

    def _commit_next(self) -> None:
        task = None if self._is_committing else self._timed(lambda: self._handing.next_done(0))
        if task is None:
            return
        self._is_committing, handing = True, self._handing
        self._timed(lambda: self._commit(task))
        seconds = self.store.take_owed() + task.rows.shard.num_rows * self.world.commit_s_per_row
        self.figures.commit_busy_s += seconds
        self._at(self._now + seconds, lambda: self._committed(handing, task))

    def _commit(self, task: Task) -> Commit:
        assert task.computed is not None
        counters = task.computed.counters.deterministic()
        return self.folder.commit(task.rows.shard, ".parquet", lambda paths: Path(paths[0]).touch(), counters)

    def _committed(self, handing: Handing, task: Task) -> None:
        self.figures.shards, self.figures.rows = task.index + 1, task.rows.shard.first_row + task.rows.shard.num_rows
        if handing is not self._handing:
            return
        self._timed(lambda: handing.committed(task))
        self._is_committing = False
        self._num_open -= 1
        if self._read is not None:
            task, self._read = self._read, None
            self._was_read(handing, task)
        self._commit_next()

    # -- figures

    def _timed(self, work: Callable[[], Any]) -> Any:
        begin = time.process_time()
        try:
            return work()
        finally:
            self._cpu_s += time.process_time() - begin

    def _summed(self) -> Figures:
        found = self.figures
        found.wall_s = self._now
        found.efficiency = found.busy_s / (self.world.devices * found.wall_s)
        found.tail_s = found.wall_s - min(device.last_s for device in self._devices)
        found.record_bytes = sum(len(data) for data in self.store.objects.values() if isinstance(data, bytes))
        found.cpu_us_per_shard = 1e6 * self._cpu_s / max(found.shards, 1)
        return found


def counters_of(shard: Shard) -> Counters:
    """What a real record of so many rows counts, so that it is as long."""
    tokens = TOKENS_PER_ROW * shard.num_rows
    buckets = {str(2**power): shard.num_rows // 6 for power in range(2, 8)}
    return Counters(
        rows=shard.num_rows, real_tokens=tokens, row_tokens=tokens, computed_tokens=tokens, batches=tokens // 16_384,
        length_rows=buckets, length_tokens=buckets, length_computed=buckets, flops=1e9 * tokens,
    )  # fmt: skip


def simulate(world: World) -> tuple[Figures, list[Commit]]:
    """The figures, and the records that stand in the run folder at the end."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as scratch:
        simulation = Simulation(world, Path(scratch))
        figures = simulation.run()
        return figures, simulation.folder.commits()
