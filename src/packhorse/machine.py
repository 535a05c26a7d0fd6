"""What a run ran on: processor, memory, instructions, accelerators, system. No host name, no torch."""

from __future__ import annotations

import platform
import shutil
import subprocess
from pathlib import Path
from typing import Any

import psutil

from packhorse.devices.host import BF16_FLAGS, FP16_FLAGS, INT8_FLAGS, cpu_flags, cpu_name, num_cores

# Instruction sets that decide how fast matrix products are.
INSTRUCTIONS = frozenset({"avx2", "avx512f", "amx_tile", "sve", "sve2", "sme", "i8mm"})
NVIDIA = Path("/proc/driver/nvidia/gpus")
QUERY_TIMEOUT_S = 10.0


def read_machine() -> dict[str, Any]:
    """This machine, as JSON values. cores: those that this process may use; memory_bytes: all there is."""
    return {
        "cpu": cpu_name(),
        "cores": num_cores(),
        "physical_cores": psutil.cpu_count(logical=False),
        "memory_bytes": psutil.virtual_memory().total,
        "instructions": sorted(cpu_flags() & (INSTRUCTIONS | BF16_FLAGS | FP16_FLAGS | INT8_FLAGS)),
        "accelerators": accelerators(),
        "system": system(),
        "python": platform.python_version(),
    }


def accelerators(nvidia: Path = NVIDIA) -> list[str]:
    """Names of NVIDIA's devices, from the driver's files, else from nvidia-smi. Other makers' are not looked for."""
    files = sorted(nvidia.glob("*/information"))
    lines = [line for file in files for line in file.read_text().splitlines() if line.startswith("Model:")]
    return [line.split(":", 1)[1].strip() for line in lines] or _nvidia_smi()


def _nvidia_smi() -> list[str]:
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    command = [program, "--query-gpu=name", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=QUERY_TIMEOUT_S, check=True)
    except (OSError, subprocess.SubprocessError):  # installed without a driver, or one that hangs: no device to name
        return []
    return done.stdout.strip().splitlines()


def system() -> str:
    """The distribution, the kernel and its version, as in "Debian GNU/Linux 12 (bookworm), Linux 6.1"."""
    return f"{_distribution()}, {platform.system()} {platform.release().partition('-')[0]}"


def _distribution() -> str:
    try:
        return platform.freedesktop_os_release().get("PRETTY_NAME", platform.system())
    except OSError:  # no os-release file: not Linux, or a bare container
        return platform.system()
