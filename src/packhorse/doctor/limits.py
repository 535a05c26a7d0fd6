"""What the process may use, where that is less than the machine has: control groups, memory nodes, disks. No torch."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

from packhorse.devices.host import cache_folder, num_cores

ROOT = Path("/")
UNLIMITED = 2**60  # version 1 writes its absence as a number near 2^63


def read_limits(root: Path = ROOT) -> dict[str, Any]:
    """As JSON values. cpus and memory_bytes: of the control group, None where it sets none."""
    cpus, memory = cpu_limit(root), memory_limit(root)
    return {
        "cgroup_cpus": cpus,
        "cgroup_memory_bytes": memory,
        "cores_seen": os.cpu_count(),
        "cores_allowed": num_cores(),
        "memory_bytes_seen": psutil.virtual_memory().total,
        "numa_nodes": numa_nodes(root),
        "disks": [disk(name, folder) for name, folder in _folders().items()],
    }


def limit_notes(limits: dict[str, Any]) -> Iterator[str]:
    """Where what the system reports is not what may be used."""
    cpus, allowed = limits["cgroup_cpus"], limits["cores_allowed"]
    if cpus is not None and cpus < allowed:
        yield (
            f"the control group gives this process the time of {cpus:g} cores, and the system shows {allowed}: threads "
            f"on all of them are held up in turn. taskset -c 0-{max(math.floor(cpus), 1) - 1} packhorse ..."
        )
    memory = limits["cgroup_memory_bytes"]
    if memory is not None and memory < limits["memory_bytes_seen"]:
        yield (
            f"the control group gives this process {memory / 1e9:,.1f} GB of memory, and the system shows "
            f"{limits['memory_bytes_seen'] / 1e9:,.1f} GB: what goes beyond the first is killed without a word"
        )
    if len(limits["numa_nodes"]) > 1:
        yield (
            f"{len(limits['numa_nodes'])} memory nodes: a process on the cores of one reaches the memory of another "
            "more slowly; numactl --cpunodebind=0 --membind=0 packhorse ... keeps to one"
        )


def cpu_limit(root: Path = ROOT) -> float | None:
    """Cores' worth of time: of version 2 cpu.max ("quota period" in microseconds), of version 1 the two apart. The
    least of the group and those around it."""
    found = []
    for folder in _groups(root, "cpu"):
        quota, period = [*_words(folder / "cpu.max"), "", ""][:2]
        if not quota:
            quota, period = _word(folder / "cpu.cfs_quota_us"), _word(folder / "cpu.cfs_period_us")
        if quota.isdigit() and period.isdigit() and int(period):
            found.append(int(quota) / int(period))
    return min(found, default=None)


def memory_limit(root: Path = ROOT) -> int | None:
    """Bytes: memory.max of version 2, memory.limit_in_bytes of version 1; the least of the group and those around."""
    names = ("memory.max", "memory.limit_in_bytes")
    words = (_word(folder / name) for folder in _groups(root, "memory") for name in names)
    return min((int(w) for w in words if w.isdigit() and int(w) < UNLIMITED), default=None)


def _groups(root: Path, controller: str) -> Iterator[Path]:
    """Folders of this process's control group and of those around it. In a container the group named in /proc may not
    be there, being that of the host: its root then is the container's own."""
    mount = root / "sys/fs/cgroup"
    for line in _lines(root / "proc/self/cgroup"):
        number, names, path = line.split(":", 2)
        if number != "0" and controller not in names.split(","):
            continue
        base = mount if number == "0" else mount / names
        base = base if base.is_dir() else mount / controller
        inner = base / path.lstrip("/")
        yield from (f for f in (inner, *inner.parents) if f == base or base in f.parents)


def numa_nodes(root: Path = ROOT) -> list[str]:
    """Cores of each memory node, as Linux lists them: 0-15,32-47."""
    folders = sorted((root / "sys/devices/system/node").glob("node[0-9]*"), key=lambda p: int(p.name[4:]))
    return [cores for folder in folders if (cores := _word(folder / "cpulist"))]


def disk(name: str, folder: Path) -> dict[str, Any]:
    """Of the nearest folder that is there: the cache itself may not be yet."""
    here = next(p for p in (folder, *folder.parents) if p.exists())
    usage = shutil.disk_usage(here)
    return {"name": name, "folder": str(folder), "total_bytes": usage.total, "free_bytes": usage.free,
            "is_writable": os.access(here, os.W_OK)}  # fmt: skip


def _folders() -> dict[str, Path]:
    home = Path(os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface")
    hub = Path(os.environ.get("HF_HUB_CACHE") or home / "hub")
    return {"packhorse's cache": cache_folder(), "models": hub}


def _word(path: Path) -> str:
    return next(iter(_words(path)), "")


def _words(path: Path) -> list[str]:
    return next(iter(_lines(path)), "").split()


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:  # another system, or another version of control groups
        return []
