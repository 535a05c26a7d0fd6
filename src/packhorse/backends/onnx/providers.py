"""Which execution provider runs the graph, how it is set up, and that it, not the CPU in its place, got the work."""

from __future__ import annotations

import contextlib
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from packhorse.backends.onnx.cache import cache_folder
from packhorse.backends.onnx.needs import need
from packhorse.errors import ModelError, UsageError

CPU = "CPUExecutionProvider"
ASSIGNMENT = "session.record_ep_graph_assignment_info"
FATAL = 4  # log severity: what matters is raised
# Operators in which a transformer's time goes. Shapes may be computed on the CPU, these may not.
HEAVY = frozenset({"MatMul", "Gemm", "FusedMatMul", "Attention", "MultiHeadAttention",
                   "MatMulNBits"})  # fmt: skip


@dataclass(frozen=True, slots=True)
class Provider:
    """An execution provider by the name of --provider."""

    name: str
    execution_provider: str  # as ONNX Runtime calls it
    device: str  # kind of the device it drives, by the names of --devices
    package: str  # what to install where it is missing
    precisions: tuple[str, ...]
    has_fused_operators: bool = False  # whether it runs the com.microsoft operators that fusions write


GPU_PRECISIONS = ("fp32", "fp16", "bf16")
MIGRAPHX = "onnxruntime-migraphx, from AMD's package index"
# In the order in which auto takes them for a device.
PROVIDERS = (
    Provider("cpu", CPU, "cpu", "onnxruntime", ("fp32", "int8"), True),
    Provider("cuda", "CUDAExecutionProvider", "cuda", "onnxruntime-gpu", (*GPU_PRECISIONS, "int8"), True),
    Provider("migraphx", "MIGraphXExecutionProvider", "cuda", MIGRAPHX, GPU_PRECISIONS),
    Provider("rocm", "MIGraphXExecutionProvider", "cuda", MIGRAPHX, GPU_PRECISIONS),
    Provider("rocm", "ROCMExecutionProvider", "cuda", MIGRAPHX, GPU_PRECISIONS, True),
    Provider("coreml", "CoreMLExecutionProvider", "mps", "onnxruntime, on macOS", ("fp32", "fp16")),
    Provider("directml", "DmlExecutionProvider", "xpu", "onnxruntime-directml, on Windows", ("fp32", "fp16"), True),
    Provider("tensorrt", "TensorrtExecutionProvider", "cuda", "onnxruntime-gpu and tensorrt", GPU_PRECISIONS),
    Provider("openvino", "OpenVINOExecutionProvider", "cpu", "onnxruntime-openvino", ("fp32",)),
)
ON_REQUEST = ("tensorrt", "openvino")  # TensorRT builds an engine for minutes; OpenVINO has a backend of its own


def choose_provider(asked: str, devices: str) -> Provider:
    """The provider of --provider for the devices of --devices. Raises UsageError where it is not here."""
    here = available()
    kind = devices.split(":")[0]
    if asked == "auto":
        return _automatic(kind, here)
    named = [p for p in PROVIDERS if p.name == asked]
    found = [p for p in named if p.execution_provider in here]
    if not found:
        raise UsageError(
            f"--provider {asked}: not in this onnxruntime, which has {_listing(here)}; pip install {named[0].package}"
        )
    if kind not in ("auto", found[0].device):
        raise UsageError(f"--provider {asked} drives {found[0].device}, --devices says {devices}: drop one of them")
    return found[0]


def _automatic(kind: str, here: list[str]) -> Provider:
    """For auto the fastest kind that is really here: a runtime built for CUDA lists it without a GPU too."""
    candidates = [p for p in PROVIDERS if p.execution_provider in here and p.name not in ON_REQUEST]
    if kind == "auto":
        accelerated = (p for p in candidates if p.device != "cpu" and has_device(p))
        return next(accelerated, PROVIDERS[0])
    fitting = [p for p in candidates if p.device == kind]
    if not fitting:
        packages = " or ".join(dict.fromkeys(p.package for p in PROVIDERS if p.device == kind)) or "another backend"
        raise UsageError(f"--devices {kind}: this onnxruntime has {_listing(here)}; pip install {packages}")
    return fitting[0]


def available() -> list[str]:
    """The execution providers that the installed runtime was built with."""
    names: list[str] = need("onnxruntime").get_available_providers()
    return names


def _listing(here: list[str]) -> str:
    return ", ".join(p.name for p in PROVIDERS if p.execution_provider in here) or ", ".join(here)


def has_device(provider: Provider) -> bool:
    """Whether the machine seems to have what the provider drives; loading proves it."""
    if provider.device != "cuda":
        return True
    if "CUDA" in provider.execution_provider:
        return Path("/dev/nvidiactl").exists() or Path("/dev/dxg").exists() or bool(shutil.which("nvidia-smi"))
    return Path("/dev/kfd").exists()


def check_precision(provider: Provider, precision: str) -> None:
    """Raises UsageError where the provider has no kernels for the precision."""
    if precision not in provider.precisions:
        legal = ", ".join(provider.precisions)
        raise UsageError(
            f"--precision {precision}: onnxruntime's {provider.execution_provider} has kernels for {legal}; "
            "--backend torch has bf16 on processors with the instructions"
        )


def options(provider: Provider, device: str, precision: str, cache: Path) -> dict[str, str]:
    """Provider options. cache: a folder for engines that are built on this machine."""
    index = device.partition(":")[2] or "0"
    lower = {"fp16": "1" if precision == "fp16" else "0", "bf16": "1" if precision == "bf16" else "0"}
    return {
        # TF32 keeps 10 bits of a product: fp32 is to mean fp32.
        "CUDAExecutionProvider": {
            "device_id": index, "use_tf32": "0", "arena_extend_strategy": "kSameAsRequested",
        },
        "TensorrtExecutionProvider": {
            "device_id": index, "trt_fp16_enable": lower["fp16"], "trt_bf16_enable": lower["bf16"],
            "trt_engine_cache_enable": "1", "trt_engine_cache_path": str(cache), "trt_timing_cache_enable": "1",
            "trt_timing_cache_path": str(cache),
        },
        "MIGraphXExecutionProvider": {"device_id": index},
        "ROCMExecutionProvider": {"device_id": index},
        "DmlExecutionProvider": {"device_id": index},
        "OpenVINOExecutionProvider": {"device_type": "CPU"},
    }.get(provider.execution_provider, {})  # fmt: skip


def open_session(path: Path, provider: Provider, device: str, precision: str, threads: int) -> Any:
    """An InferenceSession in which the provider has the work.

    Raises ModelError where onnxruntime does not load the file, or loads it on the CPU instead."""
    runtime = need("onnxruntime")
    settings = runtime.SessionOptions()
    settings.intra_op_num_threads, settings.inter_op_num_threads = threads, 1
    settings.log_severity_level = FATAL
    settings.enable_mem_pattern = False  # made for one shape; batches have many
    settings.use_deterministic_compute = threads == 1
    if provider.execution_provider != CPU:
        with contextlib.suppress(RuntimeError):
            settings.add_session_config_entry(ASSIGNMENT, "1")
    chosen = [(provider.execution_provider, options(provider, device, precision, cache_folder() / "engines"))]
    if provider.execution_provider == "TensorrtExecutionProvider":
        chosen += [("CUDAExecutionProvider", {"device_id": device.partition(":")[2] or "0"})]
    try:
        session = runtime.InferenceSession(str(path), settings, providers=chosen)
    except Exception as error:
        raise ModelError(f"{path}: onnxruntime cannot load it: {str(error).strip().splitlines()[0]}") from error
    session.disable_fallback()
    check_assignment(session, provider)
    return session


def check_assignment(session: Any, provider: Provider) -> None:
    """Raises ModelError where the CPU got work that was the provider's: that is slow, and silent."""
    if provider.execution_provider == CPU:
        return
    seen = session.get_providers()
    if provider.execution_provider not in seen:
        raise ModelError(
            f"--provider {provider.name}: onnxruntime fell back to {', '.join(seen)}; are the driver and the libraries "
            "that it was built for installed? --provider cpu runs on the processor"
        )
    strayed = sorted({op for name, op in _assigned(session) if name == CPU and op in HEAVY})
    if strayed:
        raise ModelError(
            f"--provider {provider.name}: onnxruntime gave {', '.join(strayed)} to the CPU, because "
            f"{provider.execution_provider} cannot run them as they stand in this graph; try another --precision"
        )


def _assigned(session: Any) -> list[tuple[str, str]]:
    """(execution provider, operator) of every node; empty where this version of onnxruntime does not tell."""
    try:
        graphs = session.get_provider_graph_assignment_info()
    except (AttributeError, RuntimeError, ValueError):
        return []
    return [(graph.ep_name, node.op_type) for graph in graphs for node in graph.get_nodes()]
