"""The engine of scale_simulation.py: a job as a row of events.

Real are the code that hands shards out, once more where one is late, and gives them on in order (executors/handing.py),
that says how many rows a shard has (readers/cut.py) and the run folder with its records (outputs/manifest.py), on a
store in memory. Simulated are the clock, the devices, their failures, what a store's answers take and the threads that
wait for them: as many commits at once as outputs/committing.py allows. The same seed gives the same figures; only
cpu_us_per_shard is measured.
"""

from __future__ import annotations

import heapq
import tempfile
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

from bench.scale_figures import Figures, counters_of
from bench.scale_world import Devices, PlainHanding, SimulatedStore, World
from packhorse.data import Position, Shard
from packhorse.errors import WorkerDiedError
from packhorse.executors.handing import HANDED, Handing, Task
from packhorse.executors.lanes import Breaker
from packhorse.executors.worker import Computed
from packhorse.outputs.manifest import RunFolder
from packhorse.outputs.records import Commit
from packhorse.readers.cut import ShardRows, rows_allowed
from packhorse.shard import Budget

OUTPUT_ROW_BYTES = 8
NOTHING = pa.table({})
LOOK_S = 1.0  # between two looks of idle devices; the real ones look more often
BUDGET = Budget(16_384, None)

Made = tuple[Commit, Mapping[str, Path]]  # a part that is written and not put yet


@dataclass
class _Device:
    number: int
    held: list[Task] = field(default_factory=list)
    life: int = 0  # counts its deaths: what an earlier life had begun is not finished
    is_up: bool = False
    began_s = last_s = 0.0


class _Put(NamedTuple):
    task: Task
    end_s: float


class Simulation:
    """`run()` plays the events in the order of their times."""

    def __init__(self, world: World, scratch: Path) -> None:
        self.world, self.figures = world, Figures()
        self.store = SimulatedStore(world.put_s, world.seed, scratch, world.commits_at_once)
        self.folder = RunFolder("sim://out", is_file=False, store=self.store)
        self.folder.write_manifest({"plan": {}, "budgets": [[0, BUDGET.max_batch_tokens, None]], "finished": False})
        self._random = Devices(world)
        self._devices = [_Device(number) for number in range(world.devices)]
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._num_events, self._now = 0, 0.0
        self._next_row = self._next_index = 0
        self._will_look = False
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
        kind = Handing if self.world.has_backups else PlainHanding
        self._handing = kind(Breaker(), self.world.window, max_bytes=1, clock=lambda: self._now)  # rows have no bytes
        self._is_committing = False
        self._puts: deque[_Put] = deque()  # in order
        self._read: Task | None = None  # it waits for room
        self._empty: deque[_Device] = deque()  # devices that hold nothing
        self._half: deque[_Device] = deque()  # and those that may have one more
        self._read_next(self._handing)

    def _restart(self) -> None:
        """The run ended with an error; the same command goes on after the last record."""
        self.figures.restarts += 1
        while self._puts:  # what is under way ends first
            self._count(self._puts.popleft().task)
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
        self._read = task
        self._read_on()

    def _read_on(self) -> None:
        """Where there is room by now."""
        if self._read is None or not self._handing.has_room:
            return
        task, self._read = self._read, None
        self._timed(lambda: self._handing.put(task))
        self._read_next(self._handing)
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
                if not self._handing.num_waiting and hungry is self._half:
                    break
                if not self._offer(hungry.popleft(), hungry):
                    break
        self._look_later()
        self._read_on()

    def _look_later(self) -> None:
        """Who holds nothing looks now and then whether a shard is late."""
        if self._will_look or not self._empty or self._handing.is_over or not self.world.has_backups:
            return
        self._will_look = True
        self._at(self._now + LOOK_S, self._look)

    def _look(self) -> None:
        self._will_look = False
        self._hand_out()

    def _offer(self, device: _Device, hungry: deque[_Device]) -> bool:
        """Whether another one of the queue may have better luck."""
        if not device.is_up or len(device.held) != (hungry is self._half):
            return True  # it stands in the other queue, or is gone
        task = self._timed(partial(self._handing.take, device.held, 0))
        if task is None:  # a shard whose worker died is handed out alone
            hungry.append(device)
            return any(held.deaths for held in device.held)
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
        computed = Computed(task.rows.shard, {}, counters_of(task.rows.shard), BUDGET)
        if self._timed(lambda: self._handing.done(task, computed, NOTHING, device.number, seconds)):
            self.figures.busy_s += seconds
        else:  # another was faster
            self.figures.wasted_s += seconds
            self.figures.wasted_shards += 1
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
        self._hand_out()

    # -- the lane that commits

    def _commit_next(self) -> None:
        task = None if self._is_committing else self._timed(lambda: self._handing.next_done(0))
        if task is None:
            return
        self._is_committing, handing, shard = True, self._handing, task.rows.shard
        counters = task.computed.counters.deterministic()
        made = self._timed(
            lambda: self.folder.written(shard, ".parquet", lambda paths: Path(paths[0]).touch(), counters, ())
        )
        seconds = shard.num_rows * self.world.commit_s_per_row
        self.figures.commit_busy_s += seconds
        self._at(self._now + seconds, lambda: self._written(handing, task, made))

    def _written(self, handing: Handing, task: Task, made: Made) -> None:
        """Put as soon as the first of the others is, where there are as many as there may be."""
        if handing is not self._handing:
            return
        if len(self._puts) == self.world.commits_at_once:
            wait_s = max(self._puts[0].end_s - self._now, 0.0)
            self.figures.commit_busy_s += wait_s
            self._at(self._now + wait_s, lambda: self._written(handing, task, made))
            return
        self._timed(lambda: self.folder.make_final(*made))
        seconds = self.store.take_owed()
        self._puts.append(_Put(task, self._now + seconds))
        is_alone = self.world.commits_at_once == 1
        self.figures.commit_busy_s += seconds * is_alone
        self._at(self._now + seconds, lambda: self._was_put(handing, task, is_alone))
        if not is_alone:
            self._committed(handing, task)

    def _was_put(self, handing: Handing, task: Task, is_alone: bool) -> None:
        if handing is not self._handing:
            return
        while self._puts and self._puts[0].end_s <= self._now:
            self._count(self._puts.popleft().task)
        if is_alone:
            self._committed(handing, task)

    def _count(self, task: Task) -> None:
        self.figures.shards, self.figures.rows = task.index + 1, task.rows.shard.first_row + task.rows.shard.num_rows

    def _committed(self, handing: Handing, task: Task) -> None:
        self._timed(lambda: handing.committed(task))
        self._is_committing = False
        self._read_on()
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
        found.tail_s = found.wall_s - min((d.last_s for d in self._devices if not d.held), default=found.wall_s)
        found.record_bytes = sum(len(data) for data in self.store.objects.values() if isinstance(data, bytes))
        found.cpu_us_per_shard = 1e6 * self._cpu_s / max(found.shards, 1)
        return found


def simulate(world: World) -> tuple[Figures, list[Commit]]:
    """The figures, and the records that stand in the run folder at the end."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as scratch:
        simulation = Simulation(world, Path(scratch))
        figures = simulation.run()
        return figures, simulation.folder.commits()
