"""What a run ran on, against what the system says otherwise."""

from __future__ import annotations

import json
import os
import platform
import socket
from pathlib import Path

import pytest

from packhorse.machine import accelerators, read_machine


def test_the_machine_is_described_without_its_name() -> None:
    machine = read_machine()
    assert machine["memory_bytes"] == os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert machine["cores"] == len(os.sched_getaffinity(0)) and machine["python"] == platform.python_version()
    flags = Path("/proc/cpuinfo").read_text().split()
    assert set(machine["instructions"]) <= set(flags)
    assert socket.gethostname() not in [*machine.values(), *machine["accelerators"]]
    assert json.loads(json.dumps(machine)) == machine


def test_nvidias_devices_are_named_by_the_drivers_files(tmp_path: Path) -> None:
    for bus, model in (("0000:01:00.0", "NVIDIA H200"), ("0000:02:00.0", "NVIDIA L4")):
        (tmp_path / bus).mkdir()
        (tmp_path / bus / "information").write_text(f"Model: \t\t {model}\nIRQ:   \t\t 42\n")
    assert accelerators(tmp_path) == ["NVIDIA H200", "NVIDIA L4"]


def test_a_driver_that_does_not_answer_names_no_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\necho no devices were found >&2\nexit 6\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert accelerators(tmp_path) == []
