"""Weights on their devices: plain, quantized, or split over several."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch

from packhorse.backends.torch.attention import implementation
from packhorse.backends.torch.parallel.shares import is_cut, local_bytes
from packhorse.backends.torch.placement import Placer, device_map_of, first_device, offloaded, placed, placement_note
from packhorse.backends.torch.quantization.choice import BITSANDBYTES
from packhorse.backends.torch.quantization.loading import QuantizedLoading, quantized_loading
from packhorse.backends.torch.quantization.memory import weight_bytes
from packhorse.backends.torch.weights import auto_class, base_precision, load_weights
from packhorse.devices.gemm import DTYPES
from packhorse.devices.inputs import is_split
from packhorse.errors import ModelError, UsageError
from packhorse.load_request import LoadRequest

NOT_BROUGHT = (
    "Quantized layers are not brought there from elsewhere for each forward: give the devices more --max-memory, or "
    "take --precision bf16"
)


Loaded = Callable[[Any, bool], None]  # the model, and whether it writes


class LoadedWeights(NamedTuple):
    """device: that inputs go to. base: the precision whose rounding its values have."""

    model: Any
    device: str
    base: str
    is_plain: bool  # neither quantized by a library nor split nor cut: its linear layers are torch's own
    is_split: bool
    notes: tuple[str, ...]
    placer: Placer

    @property
    def device_map(self) -> dict[str, str] | None:
        """Where --device-map put every module."""
        return device_map_of(self.model) if self.placer.has_map else None

    @property
    def num_bytes(self) -> int:
        """Of all weights, wherever they lie; of a model that is cut over several ranks this rank's share."""
        if is_cut(self.model):
            return local_bytes(self.model)
        return sum(p.num_bytes for p in placed(self.model)) if self.is_split else weight_bytes(self.model)

    def close(self) -> None:
        """Removes what was offloaded to a temporary folder."""
        self.placer.close()


def load_on_devices(request: LoadRequest, generates: bool, loaded: Loaded | None = None) -> LoadedWeights:
    """loaded: called with the model as soon as its weights are there. Raises ModelError, and UsageError for what does
    not go together or is not here."""
    auto = auto_class(request.reduction, request.description.is_encoder_decoder)
    if request.device.startswith("cuda:"):  # torch takes none without a number
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
        if quantized and request.placement.is_split:
            _check_brought(request, model)
        placer.settle(model, body_alone=not generates)
        if loaded is not None:
            loaded(model, generates)
        notes = quantized.finish(model, request) if quantized else ()
    except BaseException:
        placer.close()
        raise
    split = is_split(model)
    if split:
        notes += (placement_note(model),)
    device = str(first_device(model)) if split else request.device
    is_plain = quantized is None and not split and not request.placement.tensor_parallel
    return LoadedWeights(model, device, base, is_plain, split, notes, placer)


def _loaded(request: LoadRequest, dtype: torch.dtype, options: dict[str, Any]) -> Any:
    folder, precision = request.description.folder, request.precision
    try:
        model = load_weights(request.description, request.reduction, dtype, implementation(request), options)
        return model if "device_map" in options or request.placement.tensor_parallel else model.to(request.device)
    except ModelError as failure:
        if "quantization_config" not in options or not request.placement.is_split:
            raise
        raise ModelError(f"{failure}. {NOT_BROUGHT}") from failure
    except torch.OutOfMemoryError as failure:
        raise ModelError(
            f"{folder}: its weights in {precision} do not fit on {request.device}: {failure}; --device-map auto puts "
            "layers on other devices, --precision int8 or int4 makes them smaller"
        ) from failure


def _check_split(request: LoadRequest, quantized: QuantizedLoading | None) -> None:
    """Raises UsageError for what a model on several devices cannot be."""
    if request.placement.device_map is None:
        return
    if request.description.adapter is not None:
        raise UsageError(
            "--device-map: an adapter is merged into weights on one device; drop --device-map or --adapter"
        )
    if request.compiled:
        raise UsageError("--compile: not for a model whose layers lie on several devices; drop it or --device-map")
    if quantized is not None:
        _check_quantized_split(request, quantized)
    elif request.precision == "int8":
        raise UsageError(
            "--precision int8: packhorse's own int8 is for a model on one device; leave --device-map out, or take "
            "--precision bf16"
        )


def _check_quantized_split(request: LoadRequest, quantized: QuantizedLoading) -> None:
    """Quantized weights stay where they were quantized: accelerate brings plain ones alone to a device and away.
    Raises UsageError where some are to be brought."""
    placement, is_gpu = request.placement, request.device.startswith("cuda")
    mapping = placement.device_map
    named = {str(d) for d in mapping.values()} if isinstance(mapping, Mapping) else set(placement.max_memory)
    brought = named & ({"cpu", "disk"} if is_gpu else {"disk"}) or placement.offload_folder is not None
    if brought or (quantized.method == BITSANDBYTES and not is_gpu):
        instead = "take a --max-memory of GPUs alone" if is_gpu else "leave --device-map out"
        other = "a checkpoint that is not quantized" if quantized.is_own else "--precision bf16"
        where = "the cpu or the disk" if is_gpu else "the disk"
        raise UsageError(
            f"--device-map with --precision {quantized.precision} by {quantized.method}: quantized layers are not "
            f"brought from {where} for each forward; {instead}, or take {other}"
        )


def _check_brought(request: LoadRequest, model: Any) -> None:
    """Raises ModelError where quantized layers were put where they cannot be computed."""
    brought = offloaded(model)
    if brought:
        raise ModelError(
            f"{request.description.folder}: --device-map: in {request.precision} there is no room for "
            f"{', '.join(brought[:4])} on the devices that compute. {NOT_BROUGHT}"
        )
