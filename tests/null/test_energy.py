"""Energy counters, from a folder that looks like Linux's /sys/class/powercap."""

from __future__ import annotations

import sys
import types
from pathlib import Path
from typing import Any

import pytest

from packhorse.devices.energy import EnergyMeter

RANGE_UJ = 262_143_328_850


def zone(folder: Path, name: str, label: str, energy_uj: int) -> Path:
    path = folder / name
    path.mkdir(parents=True)
    (path / "name").write_text(label + "\n")
    (path / "max_energy_range_uj").write_text(f"{RANGE_UJ}\n")
    (path / "energy_uj").write_text(f"{energy_uj}\n")
    return path / "energy_uj"


def test_packages_and_memory_are_added_and_what_is_inside_them_is_not(tmp_path: Path) -> None:
    files = [
        zone(tmp_path, "intel-rapl:0", "package-0", 1_000_000),
        zone(tmp_path, "intel-rapl:1", "package-1", 0),
        zone(tmp_path, "intel-rapl:0:0", "core", 0),
        zone(tmp_path, "intel-rapl:0:1", "dram", 0),
        zone(tmp_path, "intel-rapl:2", "psys", 0),
        zone(tmp_path, "intel-rapl-mmio:0", "package-0", 0),
    ]
    with EnergyMeter(powercap=tmp_path) as meter:
        for i, file in enumerate(files):
            file.write_text(str(5_000_000 + i * 1_000_000))
    assert meter.sources == {"package-0 (0)": 4.0, "package-1 (1)": 6.0, "dram (0:1)": 8.0}
    assert (meter.joules, meter.reason) == (18.0, "")


def test_a_counter_that_wrapped_around_goes_on(tmp_path: Path) -> None:
    file = zone(tmp_path, "intel-rapl:0", "package-0", RANGE_UJ - 1_999_999)
    with EnergyMeter(powercap=tmp_path) as meter:
        file.write_text("3000000")
    assert meter.joules == pytest.approx(5.0)


def test_the_meter_looks_while_the_block_runs_so_that_two_wraps_are_two(tmp_path: Path) -> None:
    file = zone(tmp_path, "intel-rapl:0", "package-0", RANGE_UJ)
    with EnergyMeter(powercap=tmp_path, every_s=3_600) as meter:
        for value in (RANGE_UJ - 1, RANGE_UJ - 2):  # nearly a whole round each
            file.write_text(str(value))
            meter.counters[0].update()
    assert meter.joules == pytest.approx(2 * RANGE_UJ / 1e6)


def test_without_counters_there_is_a_reason_and_no_number(tmp_path: Path) -> None:
    with EnergyMeter(powercap=tmp_path) as meter:
        pass
    assert (meter.joules, meter.sources, meter.reason) == (None, {}, f"processor: no RAPL counter in {tmp_path}")


def test_a_counter_that_cannot_be_read_is_a_reason(tmp_path: Path) -> None:
    zone(tmp_path, "intel-rapl:0", "package-0", 0).unlink()
    with EnergyMeter(powercap=tmp_path) as meter:
        pass
    assert meter.joules is None and "intel-rapl:0/energy_uj may be read by the administrator only" in meter.reason


def test_a_counter_that_goes_away_is_left_out(tmp_path: Path) -> None:
    file = zone(tmp_path, "intel-rapl:0", "package-0", 0)
    zone(tmp_path, "intel-rapl:1", "package-1", 0)
    with EnergyMeter(powercap=tmp_path) as meter:
        file.unlink()
    assert meter.sources == {"package-1 (1)": 0.0} and meter.reason == "package-0 (0): No such file or directory"


class Board(types.ModuleType):
    """Stands for nvidia-ml-py: boards by number and UUID, each with a counter in millijoules."""

    NVMLError = RuntimeError

    def __init__(self, energy_mj: dict[str, int]) -> None:
        super().__init__("pynvml")
        self.energy_mj = energy_mj

    def nvmlInit(self) -> None: ...

    def nvmlDeviceGetHandleByIndex(self, index: int) -> str:
        return str(index)

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:
        return uuid

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: str) -> int:
        if handle not in self.energy_mj:
            raise self.NVMLError("Not Supported")
        return self.energy_mj[handle]


@pytest.mark.parametrize(
    ("device", "visible", "board"),
    [("cuda", None, "0"), ("cuda:1", None, "1"), ("cuda:1", "3,2", "2"), ("cuda:0", "GPU-ab12", "GPU-ab12")],
)
def test_the_board_that_the_run_uses_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, device: str, visible: str | None, board: str
) -> None:
    nvml: Any = Board({board: 1_000_000})
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    with EnergyMeter(device, tmp_path) as meter:
        nvml.energy_mj[board] = 1_250_000
    assert meter.sources == {device: 250.0} and meter.reason == f"processor: no RAPL counter in {tmp_path}"


def test_a_board_without_a_counter_is_a_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", Board({}))
    with EnergyMeter("cuda:0", tmp_path) as meter:
        pass
    assert meter.joules is None and meter.reason.endswith("cuda:0: Not Supported")
