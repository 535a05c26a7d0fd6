"""Devices, versions and variables of the environment."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil

from packhorse.backends import torch as torch_backend
from packhorse.devices.host import available_bytes, cpu_name
from packhorse.doctor.diagnosis import DeviceFound, Variable

LIBRARIES = (
    "packhorse", "torch", "transformers", "tokenizers", "huggingface-hub", "safetensors", "pyarrow", "numpy",
    "onnxruntime", "onnxruntime-gpu", "onnx", "openvino", "nncf", "bitsandbytes", "torchao", "accelerate", "flash-attn",
    "triton", "xgrammar", "peft", "datasets", "tokie", "nanotoken", "ray", "vllm",
)  # fmt: skip
DRIVER = Path("/proc/driver/nvidia/version")
VARIABLES = {
    "OMP_WAIT_POLICY": "how OpenMP's threads wait; packhorse sets PASSIVE: threads that spin take the cores of others",
    "OMP_NUM_THREADS": "threads inside an operator, where packhorse does not set them itself",
    "CUDA_VISIBLE_DEVICES": "the GPUs that torch sees, numbered anew from 0",
    "HF_HUB_OFFLINE": "1: models come from the cache alone",
    "HF_HOME": "where the hub's cache lies",
    "XDG_CACHE_HOME": "where packhorse's own cache lies",
    "TMPDIR": "where a file for an object store is put together; it has to hold it twice",
    "TOKENIZERS_PARALLELISM": "threads of the tokenizers library; packhorse brings its own and sets false",
    "PYTORCH_CUDA_ALLOC_CONF": "how torch takes memory of a GPU",
    "PACKHORSE_VLLM_PYTHON": "the Python of the environment that has vLLM",
}
QUERY_TIMEOUT_S = 10.0


def find_devices() -> tuple[DeviceFound, ...]:
    """Those that torch sees, the CPU last."""
    import torch

    gpus = [_cuda(torch, n) for n in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    has_mps = torch.backends.mps.is_available()
    mps = [DeviceFound("mps", "Apple GPU", None, None, torch_backend.supported_precisions("mps"))] if has_mps else []
    return (*gpus, *_xpus(torch), *mps, _cpu())


def _cuda(torch: Any, index: int) -> DeviceFound:
    name = f"cuda:{index}"
    properties = torch.cuda.get_device_properties(index)
    free, total = torch.cuda.mem_get_info(index)
    detail = f"capability {properties.major}.{properties.minor}, {properties.multi_processor_count} multiprocessors"
    precisions = torch_backend.supported_precisions(name)
    return DeviceFound(name, str(properties.name), int(total), int(free), precisions, detail)


def _xpus(torch: Any) -> list[DeviceFound]:
    if not (hasattr(torch, "xpu") and torch.xpu.is_available()):
        return []
    found = []
    for index in range(torch.xpu.device_count()):
        total = int(torch.xpu.get_device_properties(index).total_memory)
        precisions = torch_backend.supported_precisions(f"xpu:{index}")
        found.append(DeviceFound(f"xpu:{index}", torch.xpu.get_device_name(index), total, None, precisions))
    return found


def _cpu() -> DeviceFound:
    total = psutil.virtual_memory().total
    return DeviceFound("cpu", cpu_name(), total, available_bytes(), torch_backend.supported_precisions("cpu"))


def library_versions() -> dict[str, str | None]:
    """By package; and the driver of NVIDIA's GPUs, CUDA and cuDNN as torch was built for them."""
    import torch

    found: dict[str, str | None] = {name: _version(name) for name in LIBRARIES}
    found["NVIDIA driver"] = nvidia_driver()
    found["CUDA (torch's)"] = torch.version.cuda
    cudnn = torch.backends.cudnn.version() if torch.cuda.is_available() else None
    return found | {"cuDNN": None if cudnn is None else str(cudnn)}


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def nvidia_driver(path: Path = DRIVER) -> str | None:
    """From the driver's own file ("NVRM version: NVIDIA UNIX x86_64 Kernel Module  570.86.15 ..."), else nvidia-smi."""
    if path.is_file():
        words = path.read_text().split("\n")[0].split()
        return next((word for word in words if word[0].isdigit() and "." in word), None)
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    command = [program, "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=QUERY_TIMEOUT_S, check=True)
    except (OSError, subprocess.SubprocessError):  # installed without a driver, or one that hangs
        return None
    return next(iter(done.stdout.split()), None)


def read_environment(before: Mapping[str, str | None] | None = None) -> tuple[Variable, ...]:
    """before: values of variables that the doctor itself has set meanwhile."""
    values = {name: os.environ.get(name) for name in VARIABLES} | dict(before or {})
    return tuple(Variable(name, values[name], meaning) for name, meaning in VARIABLES.items())
