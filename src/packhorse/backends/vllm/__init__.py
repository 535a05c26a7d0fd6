"""vLLM, in a process of its own. Its versions of torch and transformers are its own too, so it has its own environment:

    python -m venv vllm-env && vllm-env/bin/pip install vllm
    export PACKHORSE_VLLM_PYTHON=vllm-env/bin/python

Without the variable this interpreter is used, where it has vllm. Scheduling, paged attention, prefixes computed once
and CUDA graphs are vLLM's; rows, errors, recovery and resume are ours. It runs models that write, and no others.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from packhorse.config import EngineConfig
from packhorse.data import ModelDescription, TokenizerParts
from packhorse.devices import ceilings as measured
from packhorse.devices.host import available_bytes, cpu_precisions
from packhorse.errors import ModelError, UsageError
from packhorse.load_request import LoadRequest
from packhorse.model_cost import ModelCost
from packhorse.stages import Generator

PRECISIONS = ("fp32", "bf16", "fp16", "fp8", "int4")
NEEDS_WEIGHTS = True
DEVICES = ("cuda", "xpu", "cpu")  # kinds of vLLM's platforms that have the name --devices has for them
BATCH_VARIES = (
    "vLLM's kernels may give a row other last bits in other company; VLLM_BATCH_INVARIANT=1 ends that on a GPU for "
    "which vLLM has such kernels"
)


def choose_device(settings: EngineConfig) -> str:
    """What this vLLM was built for. Raises UsageError where there is no vLLM, or --devices asks for another device."""
    from packhorse.backends.vllm.interpreter import find_python, probe

    found = probe(find_python())
    kind, _, index = settings.devices.partition(":")
    if found["device"] not in DEVICES:
        raise UsageError(
            f"--backend vllm: this vLLM runs on {found['device'] or 'nothing'}; legal are {', '.join(DEVICES)}"
        )
    if kind not in ("auto", found["device"]):
        raise UsageError(
            f"--devices {settings.devices}: the vLLM of PACKHORSE_VLLM_PYTHON runs on {found['device']}; leave the "
            "flag out, or install the vLLM of the other device"
        )
    if index and int(index) >= found["devices"]:
        raise UsageError(f"--devices {settings.devices}: vLLM sees {found['devices']}, numbered from 0")
    return found["device"] if kind == "auto" else settings.devices


def own_precision(description: ModelDescription, settings: EngineConfig) -> str | None:
    return None


def supported_precisions(device: str) -> tuple[str, ...]:
    """Those with instructions, fp32 first."""
    if device == "cpu":
        return tuple(p for p in cpu_precisions() if p in ("fp32", "bf16", "fp16"))
    return ("fp32", "bf16", "fp16")


def default_batch_tokens(device: str, precision: str, width: int) -> int:
    """For the plan: how many tokens a step computes is vLLM's own max_num_batched_tokens."""
    return 16_384 if device != "cpu" else 4_096


def num_workers(device: str, cores: int) -> int:
    return 1


def versions() -> dict[str, str]:
    """Of what is in vLLM's environment; its prefix tells it from ours. Raises UsageError where there is no vLLM."""
    from importlib.metadata import version

    from packhorse.backends.vllm.interpreter import find_python
    from packhorse.backends.vllm.interpreter import versions as of

    found = of(find_python())
    return {"vllm": found.pop("vllm", "unknown"), "tokenizers": version("tokenizers")} | {
        f"vllm's {name}": number for name, number in found.items()
    }


def best_gemm(device: str, precision: str, threads: int, seen: float) -> float | None:
    """As measured with torch on a processor; on others torch would take memory that vLLM holds."""
    return measured.best_gemm(device, precision, threads, seen) if device == "cpu" else None


def is_prepared(request: LoadRequest) -> bool:
    return True


def can_compile(device: str) -> bool:
    """vLLM compiles as it likes."""
    return False


def free_bytes(device: str) -> int | None:
    return available_bytes() if device == "cpu" else None


def ceilings(device: str, precisions: Sequence[str], threads: int) -> measured.Ceilings | None:
    """As measured with torch on a processor; of a GPU none, as of known_ceilings."""
    return measured.measure_ceilings(device, threads, precisions) if device == "cpu" else None


def known_ceilings(device: str, threads: int) -> measured.Ceilings | None:
    """Of a GPU none: torch would take memory there to tell which one it is."""
    return measured.known_ceilings(device, threads) if device == "cpu" else None


def load_tokenizer(description: ModelDescription) -> TokenizerParts:
    """Prompts are tokenized on this side, as for any other backend."""
    from packhorse.backends import torch

    parts: TokenizerParts = torch.load_tokenizer(description)
    return parts


def load(request: LoadRequest) -> Generator:
    """Raises UsageError where vLLM cannot do what is asked for, ModelError where it cannot load the model."""
    from packhorse.backends.vllm.interpreter import find_python, probe, versions
    from packhorse.backends.vllm.model import VllmModel
    from packhorse.backends.vllm.sampling import read_sampling
    from packhorse.backends.vllm.starting import QUANTIZED, prepared

    check(request)
    assert request.decoding is not None
    python = find_python()
    sampling = read_sampling(request.description.folder, request.decoding)
    gpus = probe(python)["devices"] if request.placement.tensor_parallel else 1
    notes: tuple[str, ...] = (f"vLLM {versions(python).get('vllm', 'of an unknown version')} in {python}", BATCH_VARIES)
    if request.precision in QUANTIZED:
        notes += (f"{request.precision}: weights are counted at 16 bits, as they were before vLLM quantized them",)
    return VllmModel(request, prepared(request, python, sampling, gpus), _cost(request.description), notes)


def check(request: LoadRequest) -> None:
    """Raises UsageError where a part of the request is none of vLLM's."""
    if request.decoding is None:
        raise UsageError(
            f"--backend vllm runs models that write; --task {request.description.task} runs on torch, onnx or openvino"
        )
    for flag, value, is_legal, advice in _limits(request):
        if not is_legal:
            raise UsageError(f"{flag} {value}: {advice}")


def _limits(request: LoadRequest) -> list[tuple[str, Any, bool, str]]:
    """(flag, what it says, whether vLLM can do that, what to do)."""
    from packhorse.backends.vllm.starting import QUANTIZED

    quantization, placement, adapter = request.quantization, request.placement, request.description.adapter
    options = "PACKHORSE_VLLM_OPTIONS takes vLLM's own keywords"
    is_quantized = request.precision in QUANTIZED
    return [
        ("--attention", request.attention, request.attention == "auto",
         "vLLM chooses its attention itself (its VLLM_ATTENTION_BACKEND); leave the flag out, or --backend torch"),
        ("--quantization", quantization.method, quantization.method in ("auto", "bitsandbytes"),
         "vLLM makes fp8 itself and int4 with bitsandbytes; leave the flag out, or --backend torch"),
        ("options of the quantization", dict(quantization.options), not quantization.options,
         f"vLLM takes none; leave them out, or --backend torch. {options}"),
        ("--precision", request.precision, request.device != "cpu" or not is_quantized,
         "vLLM has that on a GPU; --precision bf16 or fp32 goes with a processor, and --backend torch with it"),
        ("--tensor-parallel --devices", request.device, not (placement.tensor_parallel and ":" in request.device),
         "one GPU shares nothing out; --devices cuda goes with it, and CUDA_VISIBLE_DEVICES names several"),
        ("--device-map", placement.device_map, placement.device_map is None,
         "vLLM splits a model by tensor parallelism; leave the flag out, or --backend torch"),
        ("--max-memory", dict(placement.max_memory), not placement.max_memory,
         f"belongs to --device-map, which vLLM has not. {options}, gpu_memory_utilization among them"),
        ("--adapter", adapter.folder if adapter else None, adapter is None,
         "merge it into the model and save that, or --backend torch, which merges it as it loads"),
    ]  # fmt: skip


def _cost(description: ModelDescription) -> ModelCost:
    """From the model's config, on torch's meta device; nothing where transformers here does not know the model."""
    from packhorse.backends.torch.meta import estimate

    try:
        return estimate(description).cost
    except ModelError:
        return ModelCost()
