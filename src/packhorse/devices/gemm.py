"""The best matrix product of a device at a precision: the ceiling that a run is held against."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch

from packhorse.devices.host import cache_folder, cpu_name

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
SIZES = {"cpu": (1_024, 2_048), "cuda": (8_192,)}
REPEATS = 3
PLAUSIBLE = 0.85  # share of the best product that a whole model may reach


def best_gemm(device: str, precision: str, threads: int, seen: float = 0.0) -> float | None:
    """FLOP/s, None where the device cannot be measured at that precision.

    Measured once per device, precision, threads and torch version, then read from the user's cache. Measured again, and
    the best kept, where a model came so near (seen, FLOP/s) that others must have used the device at the time.
    """
    name = torch.cuda.get_device_name(device) if device.startswith("cuda") else f"{device} {cpu_name()}"
    if precision == "int8" and device != "cpu":
        return None
    key = f"{name} | {precision} | {threads} threads | torch {torch.__version__}"
    path = cache_folder() / "gemm.json"
    known: dict[str, float] = {}
    with contextlib.suppress(OSError, ValueError):  # no cache, or a broken one: measure
        known = json.loads(path.read_text())
    if known.get(key, 0.0) * PLAUSIBLE < max(seen, 1.0):
        try:
            rate = _int8_rate() if precision == "int8" else max(_rates(device, DTYPES[precision]))
            known[key] = max(rate, known.get(key, 0.0))
        except AttributeError:  # no int8 operators in this torch
            return None
        except RuntimeError:  # no memory for it beside the model, or no such product on the device
            return None
        with contextlib.suppress(OSError):  # a home that cannot be written: measured again next time
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary = path.with_suffix(f".{os.getpid()}.tmp")
            temporary.write_text(json.dumps(known, indent=1))
            temporary.replace(path)
    return known[key]


def _rates(device: str, dtype: torch.dtype) -> Iterator[float]:
    for size in SIZES.get(device.split(":")[0], (2_048,)):
        a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
        ways = [lambda a=a, b=b: a @ b]
        if device == "cpu" and (packed := _prepacked(b)) is not None:
            ways.append(lambda a=a, w=packed: torch.ops.mkldnn._linear_pointwise(a, w, None, "none", [], ""))
        for way in ways:
            yield 2 * size**3 / _best_time(way, device)


def _int8_rate() -> float:
    """oneDNN's product of unsigned by signed bytes, on the CPU."""
    size = SIZES["cpu"][-1]
    scales, zeros = torch.ones(size), torch.zeros(size, dtype=torch.int32)
    packed = torch.ops.onednn.qlinear_prepack(torch.ones(size, size, dtype=torch.int8), None)
    a = torch.ones(size, size, dtype=torch.uint8)
    product = torch.ops.onednn.qlinear_pointwise
    rest: tuple[Any, ...] = (None, 1.0, 0, torch.float32, "none", [], "")
    return 2 * size**3 / _best_time(lambda: product(a, 1.0, 0, packed, scales, zeros, *rest), "cpu")


def _prepacked(weight: torch.Tensor) -> torch.Tensor | None:
    """The weight in oneDNN's own order, on some processors twice torch's default in fp32; None where it has none."""
    try:
        packed: torch.Tensor = torch.ops.mkldnn._reorder_linear_weight(weight, len(weight))
    except (AttributeError, RuntimeError):  # an internal operator: other versions and processors may lack it
        return None
    return packed


def _best_time(way: Callable[[], object], device: str) -> float:
    times = []
    for _ in range(REPEATS + 1):
        begin = time.perf_counter()
        way()
        if device != "cpu":
            torch.accelerator.synchronize(device)
        times.append(time.perf_counter() - begin)
    return min(times[1:])
