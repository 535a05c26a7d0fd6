"""The ceilings of a device, which runs are held against: measured once, then read from the user's cache."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from packhorse.devices.datasheet import find_datasheet
from packhorse.devices.host import cache_folder, cpu_name

PLAUSIBLE = 0.85  # share of the best product that a whole model may reach


@dataclass(frozen=True, slots=True)
class Ceilings:
    """Measured rates of one device, and what its maker promises."""

    device: str  # by its maker's name; of a CPU the threads too
    gemm_flops_per_s: dict[str, float] = field(default_factory=dict)  # by precision; those it has instructions for
    copy_bytes_per_s: float | None = None  # read and written, within the device's memory; None: it was too small
    host_to_device_bytes_per_s: float | None = None  # from pinned memory; None on a CPU
    peak_flops_per_s: dict[str, float] = field(default_factory=dict)  # dense, from the datasheet; {}: not known
    peak_bytes_per_s: float | None = None  # of the memory, from the datasheet

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> Ceilings:
        """Raises KeyError, TypeError or ValueError where it is of another shape."""
        return cls(
            device=str(value["device"]),
            gemm_flops_per_s=_rates(value["gemm_flops_per_s"]),
            copy_bytes_per_s=_rate_or_none(value["copy_bytes_per_s"]),
            host_to_device_bytes_per_s=_rate_or_none(value["host_to_device_bytes_per_s"]),
            peak_flops_per_s=_rates(value["peak_flops_per_s"]),
            peak_bytes_per_s=_rate_or_none(value["peak_bytes_per_s"]),
        )


def measure_ceilings(device: str, threads: int, precisions: Sequence[str]) -> Ceilings:
    """Measures what earlier calls did not; precisions that the device would emulate are left out.

    device: by torch's name. threads: of a CPU. A first call takes a second or two.
    """
    from packhorse.devices.copies import copy_rate, host_to_device_rate
    from packhorse.devices.gemm import gemm_rate

    known = known_ceilings(device, threads)
    found = known or _unmeasured(device, threads)
    missing = [p for p in precisions if p not in found.gemm_flops_per_s]
    rates = {p: rate for p in missing if (rate := gemm_rate(device, p, threads)) is not None}
    found = dataclasses.replace(
        found,
        gemm_flops_per_s=found.gemm_flops_per_s | rates,
        copy_bytes_per_s=found.copy_bytes_per_s or copy_rate(device, threads),
        host_to_device_bytes_per_s=found.host_to_device_bytes_per_s or host_to_device_rate(device),
    )
    if found != known:
        _keep(device, threads, found)
    return found


def known_ceilings(device: str, threads: int) -> Ceilings | None:
    """What the cache holds; None where that is nothing, or broken. Measures nothing."""
    entry = _cached().get(_key(device, threads))
    try:
        found = Ceilings.from_dict(entry)  # type: ignore[arg-type]
    except (KeyError, TypeError, ValueError):
        return None
    return _with_peaks(found, device)


def best_gemm(device: str, precision: str, threads: int, seen: float = 0.0) -> float | None:
    """FLOP/s, None where the device cannot be measured at that precision.

    From the cache, else measured. Measured again, and the best kept, where a model came so near (seen, FLOP/s) that
    others must have used the device at the time.
    """
    from packhorse.devices.gemm import gemm_rate

    found = known_ceilings(device, threads) or _unmeasured(device, threads)
    best = found.gemm_flops_per_s.get(precision, 0.0)
    if best * PLAUSIBLE >= max(seen, 1.0):
        return best
    rate = gemm_rate(device, precision, threads)
    if rate is None:
        return best or None
    best = max(best, rate)
    rates = found.gemm_flops_per_s | {precision: best}
    _keep(device, threads, dataclasses.replace(found, gemm_flops_per_s=rates))
    return best


def _unmeasured(device: str, threads: int) -> Ceilings:
    name = _device_name(device)
    return _with_peaks(Ceilings(f"{name}, {threads} threads" if device == "cpu" else name), device)


def _with_peaks(found: Ceilings, device: str) -> Ceilings:
    """The datasheet's numbers as this version of packhorse has them."""
    sheet = find_datasheet(_device_name(device))
    peaks = {} if sheet is None else dict(sheet.flops_per_s)
    return dataclasses.replace(
        found, peak_flops_per_s=peaks, peak_bytes_per_s=None if sheet is None else sheet.bytes_per_s
    )


def _device_name(device: str) -> str:
    if device.startswith("cuda"):
        import torch

        return str(torch.cuda.get_device_name(device))
    return f"{device} {cpu_name()}"


# -- the cache


def _path() -> Path:
    return cache_folder() / "ceilings.json"


def _key(device: str, threads: int) -> str:
    import torch

    return f"{_device_name(device)} | {threads} threads | torch {torch.__version__}"


def _cached() -> dict[str, Any]:
    """{} where there is no cache, or a broken one: all is measured then."""
    with contextlib.suppress(OSError, ValueError):
        entries = json.loads(_path().read_text())
        if isinstance(entries, dict):
            return entries
    return {}


def _keep(device: str, threads: int, found: Ceilings) -> None:
    """In a home that cannot be written, nothing is kept: it is measured again next time."""
    path = _path()
    entries = _cached() | {_key(device, threads): found.to_dict()}
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(f".{os.getpid()}.tmp")
        temporary.write_text(json.dumps(entries, indent=1))
        temporary.replace(path)


def _rates(value: Mapping[str, Any]) -> dict[str, float]:
    return {str(name): _rate(rate) for name, rate in dict(value).items()}


def _rate_or_none(value: Any) -> float | None:
    return None if value is None else _rate(value)


def _rate(value: Any) -> float:
    rate = float(value)
    if not (math.isfinite(rate) and rate > 0):
        raise ValueError(f"{value!r} is no rate")
    return rate
