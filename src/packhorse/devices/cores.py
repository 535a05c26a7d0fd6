"""Groups of cores that share caches and memory: one for each of several processes."""

from __future__ import annotations

import os
from pathlib import Path

CPUS = Path("/sys/devices/system/cpu")


def core_groups(count: int) -> list[list[int]] | None:
    """The cores of this process in so many groups, as even as they go: those of a memory node, and hardware threads of
    a core, together. None where there are fewer cores than groups, or the system pins no process."""
    if not hasattr(os, "sched_setaffinity"):
        return None
    cores = sorted(os.sched_getaffinity(0), key=_place)
    if len(cores) < count:
        return None
    return [sorted(cores[len(cores) * i // count : len(cores) * (i + 1) // count]) for i in range(count)]


def pin(cores: list[int]) -> None:
    """This process, all threads that it has and will have, to these cores."""
    for thread in Path("/proc/self/task").iterdir():
        try:
            os.sched_setaffinity(int(thread.name), cores)
        except ProcessLookupError:  # a thread that ended meanwhile
            continue


def _place(core: int) -> tuple[int, int, int, int]:
    """Memory node, package, core, hardware thread; -1 where the system does not tell."""
    folder = CPUS / f"cpu{core}"
    nodes = [int(path.name[4:]) for path in folder.glob("node[0-9]*")]
    return min(nodes, default=-1), _number(folder, "physical_package_id"), _number(folder, "core_id"), core


def _number(folder: Path, name: str) -> int:
    try:
        return int((folder / "topology" / name).read_text())
    except (OSError, ValueError):
        return -1
