"""What a simulation of a job on many devices is made of: devices that are slow or die, and an object store that takes
its time. A clock is a number; nothing here waits."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from packhorse.executors.handing import AHEAD, HANDED, Handing, Task
from packhorse.outputs.stores.objects import COMMITS

HOUR_S = 3_600.0


@dataclass(frozen=True)
class World:
    """A job and what it runs on. Ranges are uniform; all chance comes from the seed."""

    devices: int
    rows: int
    rows_per_s: float = 1_000.0  # of a usual device
    spread: float = 0.0  # sigma of the log-normal speeds of devices
    noise: float = 0.0  # sigma of the log-normal time of a shard on one device
    slow_share: float = 0.0  # of the devices
    slow_speed: float = 0.1
    mtbf_s: float = math.inf  # mean time between failures of one device
    restart_s: float = 120.0  # a process that died, until it has loaded its model
    ramp_s: tuple[float, float] = (0.0, 0.0)  # until a device has loaded its model for the first time
    put_s: tuple[float, float] = (0.0, 0.0)  # of an object; an answer to a read or a listing takes as long
    read_s_per_row: float = 0.0  # of the coordinator, in its reading lane
    commit_s_per_row: float = 0.0  # of the coordinator, in its committing lane
    shard_rows: int | None = None  # None: as cut_shards does by itself
    has_backups: bool = True  # False: what handing.py does about late shards, left out
    object_commits: int = COMMITS  # at once, of an object store
    seed: int = 0

    @property
    def window(self) -> int:
        return HANDED * self.devices + AHEAD

    @property
    def commits_at_once(self) -> int:
        return self.object_commits if self.put_s[1] else 1


class Devices:
    """Drawn from the seed, device by device, so that more of them leave the first ones as they are."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._random = [np.random.default_rng([world.seed, number]) for number in range(world.devices)]
        self.speeds = [self._speed(random) for random in self._random]
        self.ready_s = [float(random.uniform(*world.ramp_s)) for random in self._random]

    def _speed(self, random: np.random.Generator) -> float:
        is_slow, usual = random.random() < self._world.slow_share, math.exp(random.normal(0, self._world.spread))
        return usual * (self._world.slow_speed if is_slow else 1.0)

    def compute_s(self, number: int, rows: int) -> float:
        noise = math.exp(self._random[number].normal(0, self._world.noise)) if self._world.noise else 1.0
        return noise * rows / (self._world.rows_per_s * self.speeds[number])

    def alive_s(self, number: int) -> float:
        """Until it dies."""
        mtbf_s = self._world.mtbf_s
        return math.inf if math.isinf(mtbf_s) else float(self._random[number].exponential(mtbf_s))


class PlainHanding(Handing):
    """Without what it does about late shards: for comparison."""

    @property
    def has_room(self) -> bool:
        return len(self._open) < self._window

    def _late(self) -> Task | None:
        return None


class SimulatedStore:
    """A Store in memory. What its answers would have taken is added up in owed_s, for whoever keeps the clock."""

    def __init__(self, put_s: tuple[float, float], seed: int, scratch: Path, commits_at_once: int = 1) -> None:
        """scratch: a folder of a real disk, for parts that are being written."""
        self.commits_at_once = commits_at_once
        self.notes: list[str] = []
        self.objects: dict[str, bytes | int] = {}  # content, or of a part its bytes
        self.owed_s, self.num_puts = 0.0, 0
        self._put_s, self._scratch = put_s, scratch
        self._random = np.random.default_rng([seed, 0x5709E])

    def take_owed(self) -> float:
        owed_s, self.owed_s = self.owed_s, 0.0
        return owed_s

    def _answer(self, times: int = 1) -> None:
        self.owed_s += float(self._random.uniform(*self._put_s, times).sum())

    def full(self, output: str) -> str:
        return output.rstrip("/")

    def resolved(self, path: str) -> str:
        return path

    def is_folder(self, path: str) -> bool:
        return any(name.startswith(path + "/") for name in self.objects)

    def names(self, folder: str) -> list[str]:
        above = folder + "/"
        found = {name.removeprefix(above).split("/")[0] for name in self.objects if name.startswith(above)}
        self._answer(1 + len(found) // 1_000)  # a page of a listing
        return sorted(found)

    def size(self, path: str) -> int | None:
        found = self.objects.get(path)
        self._answer()
        return len(found) if isinstance(found, bytes) else found

    def sizes(self, paths: Sequence[str]) -> list[int | None]:
        return [self.size(path) for path in paths]

    def read(self, path: str) -> bytes:
        self._answer()
        found = self.objects.get(path)
        if not isinstance(found, bytes):
            raise FileNotFoundError(path)
        return found

    def read_all(self, paths: Sequence[str]) -> list[bytes]:
        return [self.read(path) for path in paths]

    def sha256(self, path: str) -> str:
        return hashlib.sha256(self.read(path)).hexdigest()

    def write(self, path: str, data: bytes) -> None:
        self._answer()
        self.num_puts += 1
        self.objects[path] = data

    def temporary(self, path: str) -> Path:
        return self._scratch / path.rpartition("/")[2]

    def publish(self, temporary: Path, path: str) -> None:
        self._answer()
        self.num_puts += 1
        self.objects[path] = temporary.stat().st_size

    def delete(self, paths: Sequence[str]) -> None:
        for path in paths:
            self.objects.pop(path, None)

    @contextmanager
    def on_disk(self, paths: Sequence[str]) -> Iterator[list[str]]:
        raise NotImplementedError("parts of a simulation have no content")
        yield []

    def check_room(self, path: str, num_bytes: int) -> None: ...

    def lock(self, path: str, say: Callable[[str], None], pause: Callable[[float], None]) -> SimulatedStore:
        return self

    def check(self) -> None: ...

    def release(self) -> None: ...

    def close(self) -> None: ...
