"""What a job that generates will need and take, before a weight is read: memory by device, and time at most."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from packhorse.devices.host import available_bytes
from packhorse.errors import ModelError
from packhorse.generation import QUANTIZED, Quantization
from packhorse.loading.loader import Loader
from packhorse.loading.writing import rows_at_once, writing_precision
from packhorse.model_cost import ModelCost
from packhorse.models.memory import MemoryNeed, fits, fits_ranks, fits_split, over_ranks, predict_memory
from packhorse.models.preflight import read_object
from packhorse.models.weight_sizes import weight_files
from packhorse.plans import Forecast

USUAL_NEW_TOKENS = 256  # where neither a flag nor generation_config.json says how many
STEP_SHARE = 0.6  # of the best matrix product, or of the memory's bandwidth, that a step reaches


@dataclass(frozen=True, slots=True)
class Foreseen:
    """advice: sentences on what would make it fit; none where it does. free_bytes: by device, the job's own first."""

    precision: str
    rows_at_once: int
    max_new_tokens: int
    need: MemoryNeed | None  # None where the folder has no safetensors that tell
    free_bytes: Mapping[str, int]
    advice: tuple[str, ...]
    forecast: Forecast
    ranks: int = 0  # of --tensor-parallel, each on a device of its own: what is needed is one's

    def memory(self) -> dict[str, Any] | None:
        """As JSON values."""
        if self.need is None:
            return None
        told = {"total_bytes": self.need.total_bytes, "free_bytes": dict(self.free_bytes)}
        return asdict(self.need) | told | ({"ranks": self.ranks} if self.ranks else {})


def foresee(loader: Loader, total_rows: float) -> Foreseen:
    """Of a job whose sample the loader has seen. Raises ModelError or UsageError."""
    precision, _ = writing_precision(loader)
    rows, new_tokens = rows_at_once(loader), max_new_tokens(loader)
    free = free_bytes(loader)
    need = _of_one_rank(loader, _need(loader, precision, rows, new_tokens))
    forecast = _forecast(loader, total_rows, precision, rows, new_tokens, need)
    ranks = len(loader.placement.devices) if loader.device != "cpu" else 0
    return Foreseen(precision, rows, new_tokens, need, free, _advice(loader, need, free), forecast, ranks)


def max_new_tokens(loader: Loader) -> int:
    """As the flag or the model's generation_config.json says. Raises ModelError where that is no number."""
    path = loader.description.folder / "generation_config.json"
    own = read_object(path).get("max_new_tokens") if path.is_file() else None
    if own is not None and not isinstance(own, int):
        raise ModelError(f"{path}: max_new_tokens is {own!r}, not a whole number")
    return int(loader.settings.max_new_tokens or own or USUAL_NEW_TOKENS)


def free_bytes(loader: Loader) -> dict[str, int]:
    """By the names of --max-memory, with --tensor-parallel of its ranks' devices alone; empty where the backend has no
    device."""
    own = loader.backend.free_bytes(loader.device)
    if own is None:
        return {}
    if loader.device == "cpu":
        return {"cpu": own}
    if loader.placement.devices:
        return {name.partition(":")[2]: int(loader.backend.free_bytes(name)) for name in loader.placement.devices}
    import torch

    first = int(loader.device.partition(":")[2] or 0)
    others = [n for n in range(torch.cuda.device_count()) if n != first] if loader.device.startswith("cuda") else []
    by_gpu = {str(n): int(loader.backend.free_bytes(f"cuda:{n}")) for n in others}
    return {str(first): own, **by_gpu, "cpu": available_bytes() or 0}


def _need(loader: Loader, precision: str, rows: int, new_tokens: int) -> MemoryNeed | None:
    folder: Path = loader.description.folder
    if loader.backend_name == "null" or not any(folder.glob("*.safetensors")):
        return None
    quantization, base = _resolved(loader, precision)
    lengths = loader.material.lengths
    longest = int(np.quantile(lengths, 0.95)) if len(lengths) else 0
    limit = loader.description.max_length
    if limit is not None and not loader.description.is_encoder_decoder:
        new_tokens = max(min(new_tokens, limit - longest), 1)
    return predict_memory(
        read_object(folder / "config.json"), weight_files(folder), precision, quantization, rows, longest, new_tokens,
        loader.candidate("fp32").max_batch_tokens, base=base,
    )  # fmt: skip


def _of_one_rank(loader: Loader, need: MemoryNeed | None) -> MemoryNeed | None:
    """With --tensor-parallel what each device has to hold. Ranks on one processor share its memory: together they hold
    the whole model, and each its own torch."""
    count = len(loader.placement.devices)
    if need is None or not count:
        return need
    if loader.device == "cpu":
        return replace(need, overhead_bytes=need.overhead_bytes * count)
    return over_ranks(need, count)


def _resolved(loader: Loader, precision: str) -> tuple[Quantization, str]:
    """Who quantizes, and what the other layers are in. Raises UsageError for options that there are not."""
    s = loader.settings
    asked = Quantization(s.quantization, s.quantization_options)
    if loader.backend_name != "torch" or precision not in QUANTIZED or loader.own_precision is not None:
        return asked, "bf16"
    from packhorse.backends.torch.quantization.choice import base_of, method_of
    from packhorse.backends.torch.quantization.options import quantization_options
    from packhorse.backends.torch.quiet import quiet

    with quiet():
        quantization_options(precision, asked, loader.device)
    method = method_of(precision, asked, loader.device, generates=True)
    return Quantization(method, asked.options), base_of(loader.device)


def _advice(loader: Loader, need: MemoryNeed | None, free: Mapping[str, int]) -> tuple[str, ...]:
    """None where a file says where each module lies."""
    placement = loader.placement
    if need is None or not free or isinstance(placement.device_map, Mapping):
        return ()
    if placement.devices and loader.device != "cpu":
        return tuple(fits_ranks(need, free))
    if placement.device_map is None:
        return tuple(fits(need, free))
    return tuple(fits_split(need, placement.max_memory, free))


def _forecast(
    loader: Loader, total_rows: float, precision: str, rows: int, new_tokens: int, need: MemoryNeed | None
) -> Forecast:
    """At most: every output as long as it may become. A step reads all weights once, and multiplies with each row."""
    lengths = loader.material.lengths
    mean = float(lengths.mean()) if len(lengths) else 0.0
    ranks = max(len(loader.placement.devices), 1) if loader.device != "cpu" else 1
    told = Forecast(rows=total_rows, tokens=mean * total_rows, sample_rows=len(lengths))
    cost = _cost(loader)
    ceilings = loader.backend.ceilings(loader.device, loader.supported_precisions(), loader.threads)
    gemm = (
        ceilings.gemm_flops_per_s.get(precision if precision in ("fp32", "bf16", "fp16") else "bf16") if ceilings else 0
    )
    if need is None or not cost.per_token or not gemm:
        return told
    gemm *= ranks
    prompts_s = total_rows * cost.flops(np.array([int(mean)])) / (gemm * STEP_SHARE)
    step_s = max(need.weights_bytes / ceilings.copy_bytes_per_s, rows * cost.per_token / gemm) / STEP_SHARE
    total_s = prompts_s + -(-total_rows // rows) * new_tokens * step_s
    return told.model_copy(update={"tokens_per_s": rows / step_s, "total_s": total_s, "source": "predicted"})


def _cost(loader: Loader) -> ModelCost:
    if loader.backend_name != "torch" or loader.description.is_encoder_decoder:
        return ModelCost()
    from packhorse.backends.torch.meta import estimate

    try:
        return estimate(loader.description).cost
    except ModelError:
        return ModelCost()
