"""Linear layers of a transformers model: which keep their full precision, and which a library has quantized."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from packhorse.errors import ModelError

Fits = Callable[[int, int], bool]  # of out_features, in_features
NAMES_SHOWN = 4


def skeleton(auto: Any, folder: Path) -> nn.Module:
    """The model on the meta device, without weights, of the class that `auto` (AutoModelForCausalLM, ...) chooses.

    Raises what transformers raises where it cannot build the model: OSError, ValueError, ImportError and the like.
    """
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    with torch.device("meta"):
        model: nn.Module = auto.from_config(config, trust_remote_code=False)
    return model


def kept(model: nn.Module, fits: Fits) -> tuple[str, ...]:
    """Names of modules that are not to be quantized: what transformers leaves out (tied weights, output embeddings),
    heads of any kind, and layers whose shapes the library's products do not take.

    transformers finds the last layer by its last parameter, which for a head with a bias names no module, so that the
    heads of BERT's, RoBERTa's and DistilBERT's classifiers would be quantized.
    """
    from transformers.quantizers.base import get_keys_to_not_convert

    found = {*get_keys_to_not_convert(model), *heads(model)}
    for name, layer in _linear_layers(model):
        if not any(name == head or name.startswith(head + ".") for head in found) and not fits(*_shape(layer)):
            found.add(name)
    return tuple(sorted(found))


def heads(model: nn.Module) -> tuple[str, ...]:
    """Names of the modules with linear layers that stand beside a model's body; none of a body alone."""
    body = getattr(model, getattr(model, "base_model_prefix", "") or "-", None)
    if body is None or body is model:
        return ()
    return tuple(name for name, child in model.named_children() if child is not body and any(_linear_layers(child)))


def is_quantized(layer: nn.Module) -> bool:
    """Whether a library has put quantized weights into a linear layer, or another layer in its place."""
    weight = getattr(layer, "weight", None)
    if _is_bitsandbytes(layer):
        return True
    return weight is not None and not is_plain(weight)


def is_plain(weight: torch.Tensor) -> bool:
    """Whether a parameter is a tensor of numbers, and none of torchao's or bitsandbytes' subclasses."""
    return type(weight) in (nn.Parameter, torch.Tensor)


def check_quantized(model: nn.Module, folder: Path, method: str, precision: str) -> tuple[str, ...]:
    """Notes on what stayed in full precision. Raises ModelError where a library found nothing to quantize."""
    layers = dict(_linear_layers(model))
    full = [name for name, layer in layers.items() if not is_quantized(layer)]
    if len(full) == len(layers):
        raise ModelError(
            f"{folder}: --precision {precision}: {method} found no linear layer that it can quantize: {_why(layers)}"
        )
    if not full:
        return ()
    shown = ", ".join(full[:NAMES_SHOWN]) + (f" and {len(full) - NAMES_SHOWN} more" * (len(full) > NAMES_SHOWN))
    dtype = str(layers[full[0]].weight.dtype).removeprefix("torch.")
    return (f"{precision} by {method}: {len(layers) - len(full)} of {len(layers)} linear layers; in {dtype}: {shown}",)


def in_one_type(model: nn.Module, dtype: torch.dtype) -> None:
    """Casts weights that nobody quantized. Of a checkpoint that bitsandbytes quantized transformers 5.23 casts biases
    alone: LayerNorm refuses a weight in float32 beside a bias in bfloat16."""
    for parameter in model.parameters():
        if is_plain(parameter) and parameter.is_floating_point() and parameter.device.type != "meta":
            parameter.data = parameter.data.to(dtype)


def settle(model: nn.Module, folder: Path) -> None:
    """Runs each of bitsandbytes' layers once, which is when they bring weights and states into their final order, so
    that several threads may run them from now on, and memory is what it will be.

    model: in eval mode. Raises ModelError where a layer's shape is none that bitsandbytes computes on this device.
    """
    dtype = getattr(model, "dtype", torch.float32)
    for name, layer in _linear_layers(model):
        if not _is_bitsandbytes(layer) or layer.weight.device.type == "meta":
            continue
        ones = torch.ones(1, int(layer.in_features), dtype=dtype, device=layer.weight.device)
        try:
            with torch.no_grad():
                layer(ones)
        except (AssertionError, RuntimeError) as error:
            shape = f"{layer.out_features} x {layer.in_features}"
            raise ModelError(
                f"{folder}: bitsandbytes cannot compute the layer {name} of {shape} on {ones.device}: {error}"
            ) from error


def _linear_layers(model: nn.Module) -> Iterator[tuple[str, Any]]:
    from transformers.pytorch_utils import Conv1D

    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | Conv1D):
            yield name, module


def _shape(layer: Any) -> tuple[int, int]:
    """out_features, in_features."""
    out_in: tuple[int, int] = tuple(layer.weight.shape)
    return out_in if isinstance(layer, nn.Linear) else out_in[::-1]


def _is_bitsandbytes(layer: nn.Module) -> bool:
    return type(layer).__module__.partition(".")[0] == "bitsandbytes"


def _why(layers: dict[str, Any]) -> str:
    if any(not isinstance(layer, nn.Linear) for layer in layers.values()):
        return "the model's layers are Conv1D, as GPT-2's are; --quantization bitsandbytes takes them"
    shapes = sorted({_shape(layer) for layer in layers.values()})
    return f"layers of {', '.join(f'{out} x {into}' for out, into in shapes[:3])} do not fit its products"
