"""PyTorch: any model that transformers loads, SDPA attention, on cuda, mps, xpu or cpu."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from packhorse.config import EngineConfig
from packhorse.data import ModelDescription, TokenizerParts, Tokens
from packhorse.devices import ceilings as measured
from packhorse.devices.host import available_bytes, cpu_precisions
from packhorse.errors import ModelError, UsageError
from packhorse.load_request import LoadRequest
from packhorse.stages import Generator, LoadedModel

PRECISIONS = ("fp32", "bf16", "fp16", "int8", "int4", "fp8")
NEEDS_WEIGHTS = True


def choose_device(settings: EngineConfig) -> str:
    """The device of --devices, the first of those of --tensor-parallel. Raises UsageError where it is not here."""
    import torch

    if settings.tensor_parallel:
        return parallel_devices(settings)[0]

    devices = settings.devices

    here = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "xpu": hasattr(torch, "xpu") and torch.xpu.is_available(),
        "cpu": True,
    }
    if devices == "auto":
        return next(kind for kind, is_here in here.items() if is_here)
    kind, _, index = devices.partition(":")
    if not here[kind]:
        seen = ", ".join(k for k, is_here in here.items() if is_here)
        raise UsageError(f"--devices {devices}: no such device here; torch {torch.__version__} sees {seen}")
    if kind == "cuda" and index and int(index) >= torch.cuda.device_count():
        raise UsageError(f"--devices {devices}: there are {torch.cuda.device_count()} CUDA devices, numbered from 0")
    return devices


def parallel_devices(settings: EngineConfig) -> tuple[str, ...]:
    """Those that --tensor-parallel cuts each layer over. Raises UsageError where they are not here."""
    from packhorse.backends.torch.parallel.devices import parallel_devices

    return parallel_devices(settings)


def own_precision(description: ModelDescription, settings: EngineConfig) -> str | None:
    """int8, int4 or fp8 of a checkpoint that is quantized already."""
    from packhorse.backends.torch.quantization import own

    return own.own_precision(own.config_of(description.folder))


def supported_precisions(device: str) -> tuple[str, ...]:
    """Precisions the device has instructions for, fp32 first, the preferred faster one next."""
    import torch

    if device.startswith("cuda"):
        return ("fp32", "bf16", "fp16") if torch.cuda.is_bf16_supported(including_emulation=False) else ("fp32", "fp16")
    if device == "cpu":
        return cpu_precisions()
    return ("fp32", "bf16") if device.startswith("xpu") else ("fp32", "fp16")


def default_batch_tokens(device: str, precision: str, width: int) -> int:
    """On a CPU about as many as keep a feed-forward layer's activations within 12 MB; a GPU wants many.

    width: of the hidden states. BERT-base on 2 cores, packed, real tokens/s at 512, 1,024 and 2,048: fp32 2,140, 2,226,
    2,033; bf16 4,361, 4,474, 4,573. MiniLM fp32: 13,400, 14,000, 14,600.
    """
    if device != "cpu":
        return 16_384
    fitting = 12 * 2**20 // (4 * width * (4 if precision == "fp32" else 2))
    return min(max(fitting // 512 * 512, 512), 4_096)


def num_workers(device: str, cores: int) -> int:
    """One a core, each with one thread: a little faster than one with all, and bitwise repeatable."""
    return cores if device == "cpu" else 1


def versions() -> dict[str, str]:
    return {name: version(name) for name in ("torch", "transformers", "tokenizers")}


def quantizer_versions() -> dict[str, str]:
    """Of the libraries that quantize, those that are installed."""
    return {name: version(name) for name in ("bitsandbytes", "torchao") if find_spec(name) is not None}


def best_gemm(device: str, precision: str, threads: int, seen: float) -> float | None:
    return measured.best_gemm(device, precision, threads, seen)


def is_prepared(request: LoadRequest) -> bool:
    return True


def can_compile(device: str) -> bool:
    """Whether inductor has what it compiles with: on a CPU a C++ compiler, on CUDA triton."""
    if device == "cpu":
        return any(map(shutil.which, filter(None, (os.environ.get("CXX"), "g++", "clang++"))))
    return device.startswith("cuda") and find_spec("triton") is not None


def free_bytes(device: str) -> int | None:
    """Of a CUDA device what is free and what torch holds of it; of the host what is available."""
    if device.startswith("cuda"):
        import torch

        free, _ = torch.cuda.mem_get_info(device)
        return int(free) + torch.cuda.memory_reserved(device)
    return available_bytes() if device == "cpu" else None


def ceilings(device: str, precisions: Sequence[str], threads: int) -> measured.Ceilings:
    """Measures what the cache lacks; precisions that the device has no instructions for are left out."""
    return measured.measure_ceilings(device, threads, precisions)


def known_ceilings(device: str, threads: int) -> measured.Ceilings | None:
    """Measures nothing; None where nothing is known."""
    return measured.known_ceilings(device, threads)


def load_tokenizer(description: ModelDescription) -> TokenizerParts:
    """transformers' own tokenizer of the model, its Rust part, and whether the model takes token types. Raises
    ModelError."""
    from packhorse.backends.torch.marian import is_marian, load_marian

    if is_marian(description.folder):
        return load_marian(description.folder)
    tokenizer = _tokenizer(description.folder)
    if getattr(tokenizer, "backend_tokenizer", None) is None:
        raise ModelError(f"{description.folder}: {type(tokenizer).__name__} has no fast version, which packhorse needs")
    takes_type_ids = "token_type_ids" in tokenizer.model_input_names
    return TokenizerParts(tokenizer.backend_tokenizer, takes_type_ids, tokenizer.truncation_side)


def _tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer

    from packhorse.backends.torch.quiet import quiet
    from packhorse.backends.torch.t5 import is_t5, load_t5

    with quiet():
        try:
            if is_t5(folder):
                return load_t5(folder)
            return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        except (OSError, ValueError, ImportError, KeyError, TypeError) as error:
            raise ModelError(f"{folder}: its tokenizer cannot be loaded: {error}{_to_convert(folder)}") from error


def _to_convert(folder: Path) -> str:
    """What to do where there are SentencePiece's files alone: transformers' own message asks for another package."""
    files = [path.name for pattern in ("*.model", "*.spm") for path in sorted(folder.glob(pattern))]
    if not files or (folder / "tokenizer.json").is_file() or find_spec("sentencepiece") is not None:
        return ""
    return f". It has {files[0]} and no tokenizer.json; pip install sentencepiece protobuf, so that it can be converted"


def load(request: LoadRequest) -> LoadedModel | Generator:
    """Raises ModelError where weights are missing or do not fit the task."""
    if request.placement.tensor_parallel:
        from packhorse.backends.torch.parallel.models import load_parallel

        return load_parallel(request)
    if request.decoding is not None:
        from packhorse.backends.torch.generation.model import TorchGenerator

        return TorchGenerator(request, load_tokenizer(request.description).backend)
    from packhorse.backends.torch.model import TorchModel

    return TorchModel(request)


def compare_generators(reference: Generator, quantized: Generator, rows: Tokens) -> dict[str, float]:
    """How a quantized model that writes agrees with one that is not, on rows of tokens."""
    from packhorse.backends.torch.generation.model import TorchGenerator

    assert isinstance(reference, TorchGenerator)
    assert isinstance(quantized, TorchGenerator)
    return quantized.compared_with(reference, rows)
