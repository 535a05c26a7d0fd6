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


def num_groups() -> int:
    """Of this process's cores: memory nodes; where there is one alone, parts that share a last cache; where all share
    it, 2, since processes do not wait for each other's interpreter."""
    if not hasattr(os, "sched_getaffinity"):
        return 1
    cores = os.sched_getaffinity(0)
    for groups in ({_place(core)[0] for core in cores}, {_last_cache(core) for core in cores}):
        if len(groups) > 1:
            return len(groups)
    return min(2, len(cores))


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


def _last_cache(core: int) -> str:
    """The cores that share it, as Linux lists them; empty where the system does not tell."""
    levels = sorted((CPUS / f"cpu{core}" / "cache").glob("index[0-9]*"))
    try:
        return (levels[-1] / "shared_cpu_list").read_text().strip() if levels else ""
    except OSError:
        return ""


def _number(folder: Path, name: str) -> int:
    try:
        return int((folder / "topology" / name).read_text())
    except (OSError, ValueError):
        return -1
