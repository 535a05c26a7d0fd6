"""Where a model would lie, from its config and the headers of its weights: built on the meta device, no weight read."""

from __future__ import annotations

import dataclasses
from typing import Any

from packhorse.backends import torch as torch_backend
from packhorse.config import EngineConfig
from packhorse.data import ModelDescription
from packhorse.devices.host import num_cores
from packhorse.doctor.diagnosis import Lying, ModelPlaced
from packhorse.generation import QUANTIZED, Quantization
from packhorse.models.describe import describe
from packhorse.models.find import find_model
from packhorse.models.memory import MemoryNeed, fits, predict_memory
from packhorse.models.preflight import check_folder, read_object
from packhorse.models.weight_sizes import (
    PRECISION_BYTES,
    is_quantized,
    loaded,
    quantized_bytes,
    read_stored,
    weight_files,
)
from packhorse.tuning.precision import first_choice

SAVED = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}  # by torch's names
KINDS = {"text-classification": "classify", "feature-extraction": "pool"}
BITS = {"int8": 8, "fp8": 8, "int4": 4}
NEW_TOKENS, PROMPT_TOKENS = 256, 512  # a row of a model that writes, where nothing says more
ROWS = {"cpu": 64}  # written on at the same time
ROWS_ELSEWHERE = 128
NO_METRIC = "a run keeps none on a device; packhorse.audit(model, batch, metrics) looks at those of a loop of your own"


def place_model(settings: EngineConfig, memory_limit: int | None = None) -> ModelPlaced:
    """memory_limit: of the control group, in bytes. Raises UsageError, ModelError or HostileModelError where the model
    cannot be found or read, or the device is not here."""
    found = find_model(settings.model, settings.revision)
    check_folder(found.folder)
    about = describe(found, settings)
    device = torch_backend.choose_device(settings.on_first_device())
    own = torch_backend.own_precision(about, settings)
    precision = _precision(settings, about, device, own)
    need = _need(about, device, precision)
    free = _free_bytes(device, memory_limit)
    advice = tuple(fits(need, free)) if need is not None and free else ()
    return ModelPlaced(
        name=settings.model, task=about.task, device=device, precision=precision,
        lying=tuple(_lying(about, device, precision, own)),
        need=None if need is None else dataclasses.asdict(need) | {"total_bytes": need.total_bytes},
        free_bytes=free, advice=advice,
    )  # fmt: skip


def _precision(settings: EngineConfig, about: ModelDescription, device: str, own: str | None) -> str:
    """What a run begins with; of a model that writes the type it was saved in, where the device has it."""
    supported = torch_backend.supported_precisions(device)
    saved = SAVED.get(about.dtype or "float32", "fp32")
    if about.writes and settings.precision == "auto" and own is None and not settings.exact:
        return saved if saved in supported else "fp32"
    return first_choice(settings, supported, own)


def _base(device: str, precision: str) -> str:
    """Of the layers that a quantized model leaves alone."""
    from packhorse.backends.torch.quantization.choice import base_of

    return base_of(device) if precision in QUANTIZED else precision


def _need(about: ModelDescription, device: str, precision: str) -> MemoryNeed | None:
    """None where the folder has no safetensors that tell."""
    if not any(about.folder.glob("*.safetensors")):
        return None
    tokens = _budget(about, device, precision) * torch_backend.num_workers(device, num_cores())
    rows = ROWS.get(device, ROWS_ELSEWHERE)
    return predict_memory(
        read_object(about.folder / "config.json"), weight_files(about.folder), precision, Quantization(),
        rows if about.writes else 0, min(about.max_length or PROMPT_TOKENS, PROMPT_TOKENS), NEW_TOKENS, tokens,
        KINDS.get(about.task, "generate"), _base(device, precision),
    )  # fmt: skip


def _budget(about: ModelDescription, device: str, precision: str) -> int:
    """Tokens of a forward."""
    return torch_backend.default_batch_tokens(device, precision, about.attention_width)


def _free_bytes(device: str, limit: int | None) -> dict[str, int]:
    """By the names of --max-memory, the run's own first."""
    cpu = torch_backend.free_bytes("cpu") or 0
    host = cpu if limit is None else min(cpu, limit)
    own = torch_backend.free_bytes(device)
    if device == "cpu" or own is None:
        return {"cpu": host} if device == "cpu" else {}
    import torch

    kind, _, index = device.partition(":")
    others = range(torch.cuda.device_count()) if kind == "cuda" else ()
    first = int(index or 0)
    return {str(first): own, **{str(n): torch.cuda.mem_get_info(n)[0] for n in others if n != first}, "cpu": host}


# -- what lies where


def _lying(about: ModelDescription, device: str, precision: str, own: str | None) -> list[Lying]:
    model = _skeleton(about)
    dtype = _dtype(_base(device, precision))
    weights = _quantized(about, device, precision, own) or [_parameters(model, device, dtype)]
    return [*weights, *_buffers(model, device, dtype), *_batch(about, device, precision), Lying(
        "metric", device, "", 0, 0, NO_METRIC)]  # fmt: skip


def _skeleton(about: ModelDescription) -> Any:
    import transformers

    from packhorse.backends.torch.placement.device_map import skeleton

    seq2seq = about.writes and about.is_encoder_decoder
    names = {"text-classification": "AutoModelForSequenceClassification", "text-generation": "AutoModelForCausalLM"}
    return skeleton(getattr(transformers, "AutoModelForSeq2SeqLM" if seq2seq else names.get(about.task, "AutoModel")),
                    about.folder)  # fmt: skip


def _dtype(precision: str) -> Any:
    import torch

    return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]


def _parameters(model: Any, device: str, dtype: Any) -> Lying:
    """Shared ones once; on the meta device tied ones are told by their names."""
    tied = set(getattr(model, "all_tied_weights_keys", None) or {})
    parameters = [p for name, p in model.named_parameters() if name not in tied]
    size = sum(p.numel() for p in parameters) * dtype.itemsize
    return Lying("parameter", device, _name(dtype), len(parameters), size)


def _buffers(model: Any, device: str, dtype: Any) -> list[Lying]:
    """Those that are saved are in the model's type; others, such as the frequencies of rotary positions, as they were
    made."""
    sizes: dict[str, list[int]] = {}
    for module in model.modules():
        for name, buffer in module._buffers.items():
            if buffer is not None:
                is_cast = buffer.dtype.is_floating_point and name not in module._non_persistent_buffers_set
                kind = dtype if is_cast else buffer.dtype
                sizes.setdefault(_name(kind), []).append(buffer.numel() * kind.itemsize)
    return [Lying("buffer", device, kind, len(each), sum(each)) for kind, each in sizes.items()]


def _quantized(about: ModelDescription, device: str, precision: str, own: str | None) -> list[Lying]:
    """Weights, scales and the layers left alone, apart; none for another precision, or without headers."""
    if precision not in QUANTIZED or not any(about.folder.glob("*.safetensors")):
        return []
    config = read_object(about.folder / "config.json")
    kept = loaded(read_stored(weight_files(about.folder)), config, KINDS.get(about.task, "generate"))
    if own is not None:
        return _as_stored(kept, device)
    base = _base(device, precision)
    small, rest = [s for s in kept if is_quantized(s)], [s for s in kept if not is_quantized(s)]
    values = sum(s.numel * BITS[precision] // 8 for s in small)
    states = sum(quantized_bytes(s, precision, Quantization(), PRECISION_BYTES[base]) for s in small) - values
    plain = sum(s.numel for s in rest) * PRECISION_BYTES[base]
    return [
        Lying("parameter", device, precision, len(small), values),
        Lying("quantization", device, "scales", len(small), states),
        Lying("parameter", device, _name(_dtype(base)), len(rest), plain, "layers that are left alone"),
    ]


def _as_stored(kept: Any, device: str) -> list[Lying]:
    groups: dict[str, list[int]] = {}
    for stored in kept:
        groups.setdefault(stored.dtype.lower(), []).append(stored.num_bytes)
    return [Lying("parameter", device, kind, len(each), sum(each), "as stored") for kind, each in groups.items()]


def _batch(about: ModelDescription, device: str, precision: str) -> list[Lying]:
    """Ids and positions of a forward, int64 each; values of a row as they leave the device."""
    tokens = _budget(about, device, precision)
    inputs = Lying("input", device, "int64", 2, 2 * 8 * tokens, f"ids and positions of {tokens:,} tokens, a forward")
    if about.writes:
        return [inputs, Lying("output", device, "int32", 1, 4 * NEW_TOKENS, f"ids of a row, {NEW_TOKENS} at most")]
    width = len(about.labels) or about.attention_width
    return [inputs, Lying("output", device, "float32", 1, 4 * width, f"{width:,} values of a row")]


def _name(dtype: Any) -> str:
    return str(dtype).removeprefix("torch.")
