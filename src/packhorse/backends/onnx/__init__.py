"""ONNX Runtime: a folder's own .onnx file, or its weights exported on the fly, on the execution provider asked for."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from packhorse.backends.onnx.needs import need
from packhorse.backends.onnx.providers import check_precision, choose_provider
from packhorse.config import EngineConfig
from packhorse.data import ModelDescription, TokenizerParts
from packhorse.devices import ceilings as measured
from packhorse.devices.host import available_bytes
from packhorse.errors import UsageError
from packhorse.load_request import LoadRequest
from packhorse.stages import LoadedModel

PRECISIONS = ("fp32", "fp16", "bf16", "int8")
NEEDS_WEIGHTS = False


def choose_device(settings: EngineConfig) -> str:
    """What the provider drives, by the names of --devices. Raises UsageError where it is not here."""
    provider = choose_provider(settings.provider, settings.devices)
    return settings.devices if settings.devices != "auto" else provider.device


def own_precision(description: ModelDescription, settings: EngineConfig) -> str | None:
    """Of the folder's own file where it is below fp32, and so not a matter of choice."""
    from packhorse.backends.onnx.build import precision_of
    from packhorse.backends.onnx.files import choose_file, read_graph

    source = choose_file(description.folder, settings.onnx_file, description.source == "weights")
    seen = "fp32" if source is None else precision_of(read_graph(source, description.folder))
    return None if seen == "fp32" else seen


def supported_precisions(device: str) -> tuple[str, ...]:
    """Precisions with kernels, fp32 first, the preferred faster one next. On a CPU none is taken unasked."""
    return ("fp32", "int8") if device == "cpu" else ("fp32", "fp16", "bf16", "int8")


def default_batch_tokens(device: str, precision: str, width: int) -> int:
    return 1_024 if device == "cpu" else 16_384


def num_workers(device: str, cores: int) -> int:
    """One: a session's own threads share each operator."""
    return 1


def versions() -> dict[str, str]:
    names = ("torch", "transformers", "tokenizers")
    return {"onnxruntime": str(need("onnxruntime").__version__)} | {name: version(name) for name in names}


def best_gemm(device: str, precision: str, threads: int, seen: float) -> float | None:
    """torch's measure of the device; None where torch does not drive it, or has no such product. None for
    int8, whose weights onnxruntime often makes floats before it multiplies."""
    if precision == "int8" or not _is_torchs(device):
        return None
    return measured.best_gemm(device, precision, threads, seen)


def is_prepared(request: LoadRequest) -> bool:
    from packhorse.backends.onnx.build import is_built

    return is_built(request, choose_provider(request.provider, request.device))


def can_compile(device: str) -> bool:
    return False


def free_bytes(device: str) -> int | None:
    return available_bytes() if device == "cpu" else None


def ceilings(device: str, precisions: Sequence[str], threads: int) -> measured.Ceilings | None:
    """As measured with torch; None where torch does not drive the device."""
    return measured.measure_ceilings(device, threads, precisions) if _is_torchs(device) else None


def known_ceilings(device: str, threads: int) -> measured.Ceilings | None:
    return measured.known_ceilings(device, threads) if _is_torchs(device) else None


def _is_torchs(device: str) -> bool:
    """Whether this torch was built for the device."""
    import torch

    return device == "cpu" or (device.startswith("cuda") and torch.cuda.is_available())


def load_tokenizer(description: ModelDescription) -> TokenizerParts:
    from packhorse.backends import torch

    return torch.load_tokenizer(description)


def load(request: LoadRequest) -> LoadedModel:
    """Raises UsageError, ModelError or HostileModelError, each naming the file or the setting."""
    from packhorse.backends.onnx.build import build
    from packhorse.backends.onnx.cache import forget
    from packhorse.backends.onnx.model import OnnxModel

    if request.attention != "auto":
        raise UsageError(f"--attention {request.attention}: ONNX Runtime computes the graph's own; leave it out")
    provider = choose_provider(request.provider, request.device)
    check_precision(provider, request.precision)
    need("onnx")
    built = build(request, provider)
    try:
        return OnnxModel(request, built, provider)
    finally:
        forget(built.folder)


def export(request: LoadRequest, folder: Path) -> None:
    """Writes the model, what describes it and its tokenizer to the folder, for `load` to run as it stands."""
    from packhorse.backends.onnx.export_folder import export_folder

    provider = choose_provider(request.provider, request.device)
    check_precision(provider, request.precision)
    need("onnx")
    export_folder(request, provider, folder)
