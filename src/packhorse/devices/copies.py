"""Copies timed: the bandwidth of a device's memory, and of the way to it."""

from __future__ import annotations

import torch

from packhorse.devices.gemm import best_time, cpu_threads

# Of the source; far beyond any last-level cache: 32 MB beside each 8 cores of a server's CPU, 126 MB on a B200.
COPY_BYTES = {"cpu": 192 * 2**20, "cuda": 2**30}
BLOCK_BYTES = 2**20
TO_DEVICE_BYTES = 256 * 2**20
MEMORY_SHARE = 8  # the source takes at most one part in so many of what a GPU has free


def copy_rate(device: str, threads: int) -> float | None:
    """Bytes/s, those read and those written, of a copy within the device's memory; None where it does not fit."""
    kind = device.split(":")[0]
    num_bytes = COPY_BYTES.get(kind, TO_DEVICE_BYTES)
    if kind == "cuda":
        num_bytes = min(num_bytes, torch.cuda.mem_get_info(device)[0] // MEMORY_SHARE)
    try:
        source = _bytes(num_bytes, device)
        target = torch.empty_like(source)
        with cpu_threads(device, threads):
            return 2 * source.nbytes / best_time(lambda: target.copy_(source), device)
    except RuntimeError:
        return None


def host_to_device_rate(device: str) -> float | None:
    """Bytes/s from pinned memory of the host; None for a CPU, and where no memory can be pinned."""
    if not device.startswith("cuda"):
        return None
    try:
        source = _bytes(TO_DEVICE_BYTES, "cpu").pin_memory()
        target = torch.empty_like(source, device=device)
        return source.nbytes / best_time(lambda: target.copy_(source, non_blocking=True), device)
    except RuntimeError:
        return None


def _bytes(num_bytes: int, device: str) -> torch.Tensor:
    """About so many, random: one block again and again, which is made faster than all of them."""
    block = torch.randint(0, 256, (BLOCK_BYTES,), dtype=torch.uint8, device=device)
    return block.repeat(max(num_bytes // BLOCK_BYTES, 1))
