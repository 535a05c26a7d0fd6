"""Weights on their devices: plain, quantized, or split over several."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from packhorse.backends.torch.attention import implementation
from packhorse.backends.torch.placement import Placer, first_device, is_split, placed, placement_note
from packhorse.backends.torch.quantization.choice import BITSANDBYTES
from packhorse.backends.torch.quantization.loading import QuantizedLoading, quantized_loading
from packhorse.backends.torch.quantization.memory import weight_bytes
from packhorse.backends.torch.weights import auto_class, base_precision, load_weights
from packhorse.devices.gemm import DTYPES
from packhorse.errors import ModelError, UsageError
from packhorse.load_request import LoadRequest


class LoadedWeights(NamedTuple):
    """device: that inputs go to. base: the precision whose rounding its values have."""

    model: Any
    device: str
    base: str
    is_plain: bool  # neither quantized by a library nor split: its linear layers are torch's own
    is_split: bool
    notes: tuple[str, ...]
    placer: Placer

    @property
    def num_bytes(self) -> int:
        """Of all weights, wherever they lie."""
        return sum(p.num_bytes for p in placed(self.model)) if self.is_split else weight_bytes(self.model)

    def close(self) -> None:
        """Removes what was offloaded to a temporary folder."""
        self.placer.close()


def load_on_devices(request: LoadRequest, generates: bool) -> LoadedWeights:
    """Raises ModelError, and UsageError for what does not go together or is not here."""
    auto = auto_class(request.reduction, request.description.is_encoder_decoder)
    if request.device.startswith("cuda"):
        torch.cuda.set_device(request.device)
    quantized = quantized_loading(request, auto, generates)
    _check_split(request, quantized)
    placer = Placer(request.placement, request.device)
    options = {} if quantized is None else dict(quantized.options)
    options |= placer.options(auto, request.description.folder)
    # A library's kernels round activations about as bf16 does, whatever the type of the rest.
    base = "bf16" if quantized else base_precision(request.precision, request.device)
    try:
        model = _loaded(request, DTYPES[base], options)
        placer.settle(model, body_alone=not generates)
        notes = quantized.finish(model, request) if quantized else ()
    except BaseException:
        placer.close()
        raise
    split = is_split(model)
    if split:
        notes += (placement_note(model),)
    device = str(first_device(model)) if split else request.device
    return LoadedWeights(model, device, base, quantized is None and not split, split, notes, placer)


def _loaded(request: LoadRequest, dtype: torch.dtype, options: dict[str, Any]) -> Any:
    folder, precision = request.description.folder, request.precision
    try:
        model = load_weights(request.description, request.reduction, dtype, implementation(request), options)
        return model if "device_map" in options else model.to(request.device)
    except torch.OutOfMemoryError as failure:
        raise ModelError(
            f"{folder}: its weights in {precision} do not fit on {request.device}: {failure}; --device-map auto puts "
            "layers on other devices, --precision int8 or int4 makes them smaller"
        ) from failure


def _check_split(request: LoadRequest, quantized: QuantizedLoading | None) -> None:
    """Raises UsageError for what a model on several devices cannot be."""
    placement = request.placement
    if placement.tensor_parallel:
        raise UsageError(
            "--tensor-parallel: backend torch writes one output from one process, and does not run in several yet; "
            "--device-map auto splits the model by layers, --backend vllm splits layers over the GPUs itself"
        )
    if not placement.is_split:
        return
    if request.description.adapter is not None:
        raise UsageError(
            "--device-map: an adapter is merged into weights on one device; drop --device-map or --adapter"
        )
    if request.compiled:
        raise UsageError("--compile: not for a model whose layers lie on several devices; drop it or --device-map")
    is_outside = not request.device.startswith("cuda") or {"cpu", "disk"} & set(placement.max_memory)
    if quantized is not None and quantized.method == BITSANDBYTES and is_outside:
        raise UsageError(
            "--device-map with bitsandbytes: layers outside of a GPU stay unquantized there; take --quantization "
            "torchao, a --max-memory of GPUs alone, or --precision bf16"
        )
    if request.precision == "int8" and quantized is None:
        raise UsageError(
            "--precision int8: packhorse's own int8 is for a model on one device; with --device-map take "
            "--quantization torchao, or --precision bf16"
        )
