"""Matrix products timed: the rate of a device at a precision."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch

from packhorse.devices.host import cpu_precisions

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
SIZES = {"cpu": (1_024, 2_048), "cuda": (8_192,)}
REPEATS = 3
LAUNCHES = {"cuda": 8}  # between two synchronisations, so that waiting for the device is no part of a product
FP8_CAPABILITY, INT8_CAPABILITY, FP16_CAPABILITY = (8, 9), (7, 5), (7, 0)  # NVIDIA's, with tensor cores for it

Product = Callable[[], object]


def gemm_precisions(device: str) -> tuple[str, ...]:
    """Precisions the device multiplies matrices in without emulation, as far as torch has a product for them."""
    if device == "cpu":
        return cpu_precisions()
    if not device.startswith("cuda"):
        return ("fp32", "bf16") if device.startswith("xpu") else ("fp32", "fp16")
    capability = torch.cuda.get_device_capability(device)
    has = {
        "bf16": torch.cuda.is_bf16_supported(including_emulation=False),
        "fp16": capability >= FP16_CAPABILITY,
        "int8": capability >= INT8_CAPABILITY and torch.version.hip is None,
        "fp8": capability >= FP8_CAPABILITY and torch.version.hip is None,
    }
    return ("fp32", *(precision for precision, is_here in has.items() if is_here))


def gemm_rate(device: str, precision: str, threads: int) -> float | None:
    """FLOP/s of the best product of square matrices; None where the device has no instructions, torch no operator or
    the device no memory for it. threads: of a CPU."""
    if precision not in gemm_precisions(device):
        return None
    try:
        with torch.inference_mode(), cpu_threads(device, threads):
            return max(_rates(device, precision))
    except (AttributeError, RuntimeError, NotImplementedError):
        return None


@contextlib.contextmanager
def cpu_threads(device: str, threads: int) -> Iterator[None]:
    """So many threads inside an operator, where the device is the CPU."""
    if device != "cpu":
        yield
        return
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def best_time(way: Product, device: str, launches: int = 1) -> float:
    """Seconds of one call, the best of a few. The first, which compiles or warms up, counts for nothing."""
    times = []
    for _ in range(REPEATS + 1):
        begin = time.perf_counter()
        for _ in range(launches):
            way()
        if device != "cpu":
            torch.accelerator.synchronize(device)
        times.append((time.perf_counter() - begin) / launches)
    return min(times[1:])


def _rates(device: str, precision: str) -> Iterator[float]:
    kind = device.split(":")[0]
    products = {"int8": _int8_products, "fp8": _fp8_products}.get(precision, _float_products)
    for size in SIZES.get(kind, (2_048,)):
        for way in products(device, size, precision):
            yield 2 * size**3 / best_time(way, device, LAUNCHES.get(kind, 1))


# Values are random: a GPU computes zeros, or ones, with less power and so at a higher clock.


def _float_products(device: str, size: int, precision: str) -> Iterator[Product]:
    a, b = (torch.randn(size, size, device=device, dtype=DTYPES[precision]) for _ in range(2))
    yield lambda: a @ b
    packed = _prepacked(b) if device == "cpu" else None
    if packed is not None:
        yield lambda: torch.ops.mkldnn._linear_pointwise(a, packed, None, "none", [], "")


def _prepacked(weight: torch.Tensor) -> torch.Tensor | None:
    """The weight in oneDNN's own order, on some processors twice torch's default in fp32; None where it has none."""
    try:
        packed: torch.Tensor = torch.ops.mkldnn._reorder_linear_weight(weight, len(weight))
    except (AttributeError, RuntimeError):  # an internal operator: other versions and processors may lack it
        return None
    return packed


def _int8_products(device: str, size: int, precision: str) -> Iterator[Product]:
    """On a CPU oneDNN's product of unsigned by signed bytes, on a GPU signed by signed, the second by columns."""
    b = torch.randint(-127, 128, (size, size), dtype=torch.int8, device=device)
    if device != "cpu":
        a = torch.randint(-127, 128, (size, size), dtype=torch.int8, device=device)
        yield lambda: torch._int_mm(a, b.t())
        return
    bytes_ = torch.randint(0, 256, (size, size), dtype=torch.uint8)
    scales, zeros = torch.ones(size), torch.zeros(size, dtype=torch.int32)
    packed = torch.ops.onednn.qlinear_prepack(b, None)
    product = torch.ops.onednn.qlinear_pointwise
    rest: tuple[Any, ...] = (None, 1.0, 0, torch.float32, "none", [], "")
    yield lambda: product(bytes_, 1.0, 0, packed, scales, zeros, *rest)


def _fp8_products(device: str, size: int, precision: str) -> Iterator[Product]:
    """e4m3 by e4m3, one scale a matrix, to bf16; the second by columns, as the operator wants it."""
    a, b = (torch.randn(size, size, device=device).to(torch.float8_e4m3fn) for _ in range(2))
    one = torch.ones((), device=device)
    yield lambda: torch._scaled_mm(a, b.t(), scale_a=one, scale_b=one, out_dtype=torch.bfloat16)
