"""Copies and waits as the device's own profiler counts them: those too that no mode of torch sees."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from packhorse.auditing.findings import DeviceTraffic

COPIES = ("gpu_memcpy", "gpu_memset")  # categories of the trace
CALLS = ("cuda_runtime", "cuda_driver")
WAITING = ("Synchronize", "StreamWaitEvent")  # in the names of CUDA's calls: cudaStreamSynchronize, ...


def profiled(step: Callable[[], Any], steps: int) -> tuple[DeviceTraffic, ...]:
    """Runs steps batches under torch.profiler, the device being a CUDA one."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        for _ in range(steps):
            step()
        torch.cuda.synchronize()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(path))
        return traffic_of(json.loads(path.read_text(encoding="utf-8")), steps)


def traffic_of(trace: Mapping[str, Any], steps: int) -> tuple[DeviceTraffic, ...]:
    """Copies, and calls that wait, of a trace in Chrome's format, as torch.profiler (Kineto) writes it: durations in
    microseconds, a copy's size in args.bytes. What takes longest first. The wait at the end of the profile is one of
    its cudaDeviceSynchronize."""
    found: dict[str, list[tuple[float, float]]] = {}
    for event in trace.get("traceEvents", ()):
        name, kind = str(event.get("name", "")), event.get("cat")
        is_wait = kind in CALLS and any(word in name for word in WAITING)
        if event.get("ph") == "X" and (kind in COPIES or is_wait):
            size = float((event.get("args") or {}).get("bytes") or 0)
            found.setdefault(name, []).append((size, float(event.get("dur") or 0) * 1e-6))
    rows = [
        DeviceTraffic(name, len(group) / steps, sum(b for b, _ in group) / steps, sum(t for _, t in group) / steps)
        for name, group in found.items()
    ]
    return tuple(sorted(rows, key=lambda row: -row.elapsed_s))
