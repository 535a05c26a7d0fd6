"""What a number was measured on: processor, memory, instructions, system, versions. No host names."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path

import psutil

from packhorse.comparison.contract import Frozen
from packhorse.devices.host import cpu_flags, cpu_name, num_cores
from packhorse.machine import system

# The instructions that decide how fast bf16 and int8 matrix products are (x86, then Arm).
FLAGS = ("avx2", "avx512f", "avx512_bf16", "avx512_vnni", "avx512_fp16", "amx_tile", "amx_bf16", "amx_int8")
ARM_FLAGS = ("bf16", "i8mm", "sve", "sve2", "sme")
PACKAGES = (
    "torch", "transformers", "tokenizers", "sentence-transformers", "onnxruntime", "openvino", "nncf", "packhorse",
)  # fmt: skip


class Machine(Frozen):
    """The hardware and the system. `cores`: those this process may use; `memory_bytes`: all there is."""

    cpu: str
    cores: int
    physical_cores: int | None
    memory_bytes: int
    flags: list[str]
    accelerators: list[str]
    system: str


def read_machine() -> Machine:
    """This machine."""
    here = cpu_flags()
    return Machine(
        cpu=cpu_name(),
        cores=num_cores(),
        physical_cores=psutil.cpu_count(logical=False),
        memory_bytes=psutil.virtual_memory().total,
        flags=[flag for flag in (*FLAGS, *ARM_FLAGS) if flag in here],
        accelerators=_nvidia_gpus(),
        system=system(),
    )


def read_versions(checkout: Path | None = None) -> dict[str, str]:
    """Versions of Python and of the packages that matter; the commit too, where a checkout is named."""
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = "not installed"
    return versions if checkout is None else versions | {"packhorse commit": _commit(checkout)}


def busy_share(seconds: float = 0.5) -> float:
    """Share of all cores that is at work now, 0 to 1: before a comparison, what others take."""
    return psutil.cpu_percent(seconds) / 100


def _commit(checkout: Path) -> str:
    commit = _output_of(["git", "-C", str(checkout), "rev-parse", "--short=12", "HEAD"])
    # Results written into bench/results do not change what was measured.
    changes = _output_of(["git", "-C", str(checkout), "status", "--porcelain", "--", ".", ":!bench/results"])
    return f"{commit or 'none'}{' with uncommitted changes' if changes else ''}"


def _nvidia_gpus() -> list[str]:
    if os.environ.get("CUDA_VISIBLE_DEVICES") == "":
        return []
    return _output_of(["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader"]).splitlines()


def _output_of(command: list[str]) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""
