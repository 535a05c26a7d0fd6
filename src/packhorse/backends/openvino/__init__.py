"""OpenVINO: a model converted from its torch checkpoint, or openvino_model.xml as exported, on the processor."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from packhorse.config import EngineConfig
from packhorse.data import ModelDescription, TokenizerParts
from packhorse.devices import ceilings as measured
from packhorse.devices.host import available_bytes, cpu_precisions
from packhorse.errors import UsageError
from packhorse.load_request import LoadRequest
from packhorse.stages import LoadedModel

PRECISIONS = ("fp32", "bf16", "int8")
NEEDS_WEIGHTS = False


def choose_device(settings: EngineConfig) -> str:
    """cpu. Raises UsageError where --devices asks for another."""
    from packhorse.backends.openvino.packages import import_openvino

    here = import_openvino().Core().available_devices
    if settings.devices not in ("auto", "cpu"):
        raise UsageError(
            f"--devices {settings.devices}: the openvino backend runs on the processor (--devices cpu); OpenVINO has "
            f"{', '.join(here)} here"
        )
    if "CPU" not in here:
        raise UsageError(f"this OpenVINO has no CPU plugin; it has {', '.join(here) or 'no devices'}")
    return "cpu"


def own_precision(description: ModelDescription, settings: EngineConfig) -> str | None:
    """int8 where the folder holds nothing but a quantized graph. Raises ModelError where its record is damaged."""
    from packhorse.backends.openvino.files import holds_int8

    return "int8" if holds_int8(description) else None


def supported_precisions(device: str) -> tuple[str, ...]:
    """Those the processor has instructions for, and that OpenVINO computes in."""
    return tuple(p for p in cpu_precisions() if p in PRECISIONS)


def default_batch_tokens(device: str, precision: str, width: int) -> int:
    """Small batches stay in the caches: BERT-base in bf16 on 2 cores ran 4,610 tokens/s at 512 tokens a batch, 4,650 at
    1,024 and 4,240 at 2,048. A length seen for the first time costs about 2 ms, so 512 is small for a MiniLM."""
    return 1_024


def num_workers(device: str, cores: int) -> int:
    """One a core, each with one thread: a stream's result is then the same whatever the other streams do."""
    return cores


def versions() -> dict[str, str]:
    names = ("openvino", "nncf", "torch", "transformers", "tokenizers")
    return {name: number for name in names if (number := _version(name)) is not None}


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def best_gemm(device: str, precision: str, threads: int, seen: float) -> float | None:
    """As measured with torch, whose best products are oneDNN's as OpenVINO's are."""
    return measured.best_gemm(device, precision, threads, seen)


def is_prepared(request: LoadRequest) -> bool:
    from packhorse.backends.openvino.cache import is_kept

    return is_kept(request)


def can_compile(device: str) -> bool:
    return False


def free_bytes(device: str) -> int | None:
    return available_bytes()


def ceilings(device: str, precisions: Sequence[str], threads: int) -> measured.Ceilings:
    """As measured with torch."""
    return measured.measure_ceilings(device, threads, precisions)


def known_ceilings(device: str, threads: int) -> measured.Ceilings | None:
    return measured.known_ceilings(device, threads)


def load_tokenizer(description: ModelDescription) -> TokenizerParts:
    from packhorse.backends import torch

    parts: TokenizerParts = torch.load_tokenizer(description)
    return parts


def load(request: LoadRequest) -> LoadedModel:
    """Raises ModelError where the model cannot be converted, or its conversion does not agree with torch."""
    from packhorse.backends.openvino.model import load_model

    return load_model(request)


def export(request: LoadRequest, folder: Path) -> None:
    """Writes a folder that this backend loads without torch's weights. Raises ModelError as load does."""
    from packhorse.backends.openvino.exported import export_model

    export_model(request, folder)
