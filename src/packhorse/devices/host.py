"""The host: cores, instructions, memory. No torch."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import psutil

BF16_FLAGS = frozenset({"avx512_bf16", "amx_bf16", "bf16"})
INT8_FLAGS = frozenset({"avx512_vnni", "avx_vnni", "amx_int8", "asimddp"})
FP16_FLAGS = frozenset({"avx512_fp16", "amx_fp16", "asimdhp"})


def num_cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cache_folder() -> Path:
    """Where what was measured or converted once is kept for the user; it may not exist yet."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "packhorse"


def cpu_flags() -> frozenset[str]:
    """Instruction sets as Linux names them; empty where it does not tell."""
    info = Path("/proc/cpuinfo")
    if not info.is_file():
        return frozenset()
    for line in info.read_text().splitlines():
        if line.startswith(("flags", "Features")):
            return frozenset(line.split(":", 1)[1].split())
    return frozenset()


def cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def cpu_precisions() -> tuple[str, ...]:
    """Precisions this processor has instructions for; others run, 10-30x slower."""
    flags = cpu_flags()
    known = {"bf16": BF16_FLAGS, "fp16": FP16_FLAGS, "int8": INT8_FLAGS}
    return ("fp32", *(precision for precision, needed in known.items() if flags & needed))


def available_bytes() -> int:
    """Memory that can be had without swapping."""
    return int(psutil.virtual_memory().available)


def rss_peak_bytes() -> int:
    """Most memory this process has held, in bytes. Linux: VmHWM, since ru_maxrss may begin at the parent's peak."""
    status = Path("/proc/self/status")
    if status.is_file():
        line = next(x for x in status.read_text().splitlines() if x.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    return int(psutil.Process().memory_info().rss)
