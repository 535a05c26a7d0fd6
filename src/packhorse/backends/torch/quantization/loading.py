"""Quantized weights for a load request: by a library, or as they lie in the checkpoint."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn

from packhorse.backends.torch.quantization.choice import (
    BITSANDBYTES,
    STATIC,
    THRESHOLD,
    check_unquantized,
    is_row_independent,
    method_of,
)
from packhorse.backends.torch.quantization.layers import check_quantized, in_one_type, settle, skeleton
from packhorse.backends.torch.quantization.options import own_options, quantization_options
from packhorse.backends.torch.quantization.own import (
    check_own,
    config_of,
    own_precision,
    own_quantization,
    quantization_config,
)
from packhorse.backends.torch.quiet import quiet
from packhorse.data import ModelDescription
from packhorse.errors import ModelError, UsageError
from packhorse.generation import QUANTIZED, Quantization
from packhorse.load_request import LoadRequest

# How a row's values are had that do not depend on its batch.
AS_ASKED = f"--quantization-options {THRESHOLD}=0 ends that, as another --quantization does"
IN_THE_CHECKPOINT = f"--batch-size 1, or {THRESHOLD} of 0 in its config.json, ends that"
BUILD_FAILURES = (OSError, ValueError, KeyError, ImportError, RuntimeError)


class QuantizedLoading(NamedTuple):
    """options: keyword arguments of from_pretrained. A model loaded with a device_map stays where that put it."""

    method: str
    precision: str
    options: Mapping[str, Any]
    is_own: bool  # the checkpoint is quantized already

    def finish(self, model: nn.Module, request: LoadRequest) -> tuple[str, ...]:
        """Makes a loaded model, in eval mode, ready for several threads. Returns notes on what it is. Raises
        ModelError where nothing in it is quantized, or its layers cannot be computed here."""
        folder = request.description.folder
        if self.method == BITSANDBYTES:  # it would say in every forward of an int8 layer that it computes in fp16
            logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
        if self.is_own and self.method == BITSANDBYTES:
            in_one_type(model, self.options["dtype"])
        settle(model, folder)
        notes, options, remedy = self._own(folder) if self.is_own else self._made(model, request)
        if is_row_independent(self.method, self.precision, Quantization(self.method, options)):
            return notes
        return (
            *notes,
            f"LLM.int8 keeps outliers apart by batch: a row's values depend on its batch a little; {remedy}",
        )

    def _own(self, folder: Path) -> tuple[tuple[str, ...], dict[str, Any], str]:
        """Notes, what it was made with that rows depend on, and how that is ended."""
        found = quantization_config(config_of(folder)) or {}
        note = f"{self.precision}: the weights are quantized already, by {self.method}"
        return (note,), {name: found[name] for name in (THRESHOLD,) if name in found}, IN_THE_CHECKPOINT

    def _made(self, model: nn.Module, request: LoadRequest) -> tuple[tuple[str, ...], Mapping[str, Any], str]:
        notes = check_quantized(model, request.description.folder, self.method, self.precision)
        return notes, request.quantization.options, AS_ASKED


def quantized_loading(request: LoadRequest, auto: Any, generates: bool) -> QuantizedLoading | None:
    """How to load what is asked for; None where no library quantizes it: full precision, or packhorse's own int8.

    auto: transformers' AutoModelForCausalLM or the like. Raises UsageError for what does not go together, ModelError
    where a quantized checkpoint needs what is not here.
    """
    folder = request.description.folder
    config = config_of(folder)
    own = own_quantization(config)
    if own is not None:
        _check_own_request(request, own, str(own_precision(config)))
        check_own(folder, own)
        return QuantizedLoading(own, str(own_precision(config)), own_options(own, request.device), True)
    check_unquantized(request.precision, request.quantization)
    if request.precision not in QUANTIZED:
        return None
    method = method_of(request.precision, request.quantization, request.device, generates)
    if method == STATIC:
        return None
    _check_adapter(request.description, f"--precision {request.precision} by {method}")
    options = _options(request, auto, generates)
    return QuantizedLoading(method, request.precision, options, False)


def _options(request: LoadRequest, auto: Any, generates: bool) -> dict[str, Any]:
    folder = request.description.folder
    with quiet():
        try:
            model = skeleton(auto, folder)
        except BUILD_FAILURES as error:
            raise ModelError(f"{folder}: cannot be built from its config: {error}") from error
        return quantization_options(request.precision, request.quantization, request.device, generates, model)


def _check_own_request(request: LoadRequest, own: str, precision: str) -> None:
    """Raises UsageError where another precision, another method or an adapter is asked for."""
    what = f"the weights in {request.description.folder} are quantized already, by {own}"
    if request.precision not in ("auto", precision):
        raise UsageError(f"--precision {request.precision}: {what}; leave it out, or give a checkpoint that is not")
    if request.quantization.method != "auto" or request.quantization.options:
        raise UsageError(f"--quantization and --quantization-options: {what}; leave them out")
    _check_adapter(request.description, what)


def _check_adapter(description: ModelDescription, what: str) -> None:
    """An adapter is merged in fp32 before anything else, which weights quantized on the way from the disk are not."""
    if description.adapter is not None:
        raise UsageError(
            f"--adapter {description.adapter.folder}: {what}: an adapter is merged into full weights; save the merged "
            "model (peft's merge_and_unload, then save_pretrained) and give that, or --precision bf16"
        )
