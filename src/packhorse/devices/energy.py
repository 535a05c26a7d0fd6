"""Energy that the machine used while a block ran: Intel's and AMD's RAPL counters, NVIDIA's own. No torch.

RAPL counts whole processor packages and their memory, whatever process works on them; NVIDIA counts the whole board.
Disks, fans and the losses of the power supply are in neither.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self

POWERCAP = Path("/sys/class/powercap")
EVERY_S = 10.0  # a RAPL counter wraps around after some 260 kJ: minutes on a large server


@dataclass
class Counter:
    """A running total in `units_per_j` to the joule. wraps_at: the value after which it begins at 0 again."""

    name: str
    read: Callable[[], int]
    units_per_j: float
    wraps_at: int | None = None
    joules: float = 0.0
    _last: int = 0

    def start(self) -> None:
        self._last = self.read()

    def update(self) -> None:
        """Adds what was used since the last look; right as long as it wrapped around at most once."""
        now = self.read()
        used = now - self._last
        if used < 0 and self.wraps_at is not None:
            used += self.wraps_at + 1
        self.joules += max(used, 0) / self.units_per_j
        self._last = now


@dataclass
class EnergyMeter:
    """`with EnergyMeter(device) as meter: ...`; afterwards its `joules`, `sources` and `reason` hold.

    A thread looks every 10 s, so that no counter wraps around unseen.
    """

    device: str = "cpu"
    powercap: Path = POWERCAP
    counters: list[Counter] = field(default_factory=list)
    reasons: list[str] = field(default_factory=list)
    every_s: float = EVERY_S

    def __enter__(self) -> Self:
        self._add(*_rapl(self.powercap))
        if self.device.startswith("cuda"):
            self._add(*_nvidia(self.device))
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="energy", daemon=True)
        self._each(Counter.start)
        if self.counters:
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join()
        self._each(Counter.update)

    @property
    def joules(self) -> float | None:
        """All sources together; None where nothing could be measured."""
        return sum(c.joules for c in self.counters) if self.counters else None

    @property
    def sources(self) -> dict[str, float]:
        """Joules by source."""
        return {c.name: c.joules for c in self.counters}

    @property
    def reason(self) -> str:
        """What is not measured, and why; empty where all is."""
        return "; ".join(self.reasons)

    def _add(self, counters: list[Counter], reason: str) -> None:
        self.counters += counters
        self.reasons += [reason] if reason else []

    def _watch(self) -> None:
        while not self._ended.wait(self.every_s):
            self._each(Counter.update)

    def _each(self, step: Callable[[Counter], None]) -> None:
        """A counter that cannot be read any more counts for nothing: what it missed is not known."""
        for counter in list(self.counters):
            try:
                step(counter)
            except OSError as error:
                self.counters.remove(counter)
                self.reasons.append(f"{counter.name}: {error.strerror or error}")


def _rapl(powercap: Path) -> tuple[list[Counter], str]:
    """Packages, and memory where it has a counter of its own (a package's leaves it out)."""
    counters = []
    for zone in sorted(powercap.glob("intel-rapl:*")):  # AMD's too
        try:
            name = (zone / "name").read_text().strip()
            if not name.startswith(("package", "dram")):  # core and uncore are in their package, psys is all of them
                continue
            if not os.access(zone / "energy_uj", os.R_OK):
                return [], f"processor: {zone / 'energy_uj'} may be read by the administrator only"
            wraps_at = _number(zone / "max_energy_range_uj")
        except OSError as error:
            return [], f"processor: {error.filename}: {error.strerror}"
        label = f"{name} ({zone.name.removeprefix('intel-rapl:')})"
        counters.append(Counter(label, partial(_number, zone / "energy_uj"), 1e6, wraps_at))
    return counters, "" if counters else f"processor: no RAPL counter in {powercap}"


def _number(file: Path) -> int:
    return int(file.read_text())


def _nvidia(device: str) -> tuple[list[Counter], str]:
    """The counter of one board (Volta and later), in millijoules, through nvidia-ml-py."""
    try:
        import pynvml
    except ImportError:
        return [], f"{device}: needs the package nvidia-ml-py (pip install nvidia-ml-py)"
    try:
        pynvml.nvmlInit()
        handle = _handle(pynvml, int(device.partition(":")[2] or 0), os.environ.get("CUDA_VISIBLE_DEVICES"))
        pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)
    except pynvml.NVMLError as error:
        return [], f"{device}: {error}"
    return [Counter(device, partial(_total_energy, pynvml, handle), 1e3)], ""


def _total_energy(pynvml: Any, handle: Any) -> int:
    try:
        return int(pynvml.nvmlDeviceGetTotalEnergyConsumption(handle))
    except pynvml.NVMLError as error:
        raise OSError(str(error)) from error


def _handle(pynvml: Any, index: int, visible: str | None) -> Any:
    """Of torch's device `index`: CUDA_VISIBLE_DEVICES names boards by number or by UUID. Numbers are taken in the order
    of the bus, which differs from CUDA's where boards of different kinds are in one machine."""
    names = [name.strip() for name in visible.split(",")] if visible else []
    name = names[index] if index < len(names) else str(index)
    return pynvml.nvmlDeviceGetHandleByIndex(int(name)) if name.isdigit() else pynvml.nvmlDeviceGetHandleByUUID(name)
