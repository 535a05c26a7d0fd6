"""Weights of a model that writes: plain, quantized, or split over devices."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from packhorse.backends.torch.attention import implementation
from packhorse.backends.torch.placement import Placer, is_split, placement_note
from packhorse.backends.torch.quantization.loading import quantized_loading
from packhorse.backends.torch.weights import auto_class, base_precision, load_weights
from packhorse.devices.gemm import DTYPES
from packhorse.errors import ModelError
from packhorse.load_request import LoadRequest


class LoadedWeights(NamedTuple):
    model: Any
    is_plain: bool  # neither quantized nor split: its linear layers are torch's own
    notes: tuple[str, ...]
    placer: Placer

    def close(self) -> None:
        """Removes what was offloaded to a temporary folder."""
        self.placer.close()


def load_for_generation(request: LoadRequest) -> LoadedWeights:
    """Raises ModelError, and UsageError for what does not go together or is not here."""
    auto = auto_class(request.reduction, request.description.is_encoder_decoder)
    if request.device.startswith("cuda"):
        torch.cuda.set_device(request.device)
    quantized = quantized_loading(request, auto, generates=True)
    placer = Placer(request.placement, request.device)
    options = {} if quantized is None else dict(quantized.options)
    options |= placer.options(auto, request.description.folder)
    base = "bf16" if quantized else base_precision(request.precision, request.device)
    try:
        model = load_weights(request.description, request.reduction, DTYPES[base], implementation(request), options)
        if "device_map" not in options and not request.placement.tensor_parallel:
            model = model.to(request.device)
    except torch.OutOfMemoryError as failure:
        folder = request.description.folder
        raise ModelError(
            f"{folder}: its weights in {request.precision} do not fit on {request.device}: {failure}; "
            "--device-map auto splits them, --precision int8 or int4 makes them smaller"
        ) from failure
    placer.settle(model)
    notes = quantized.finish(model, request) if quantized else ()
    if is_split(model):
        notes += (placement_note(model),)
    return LoadedWeights(model, quantized is None and not is_split(model), notes, placer)
