"""Bytes that a model's weights take up, quantized or not."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

# Attributes of bitsandbytes' parameters and layers that hold tensors: QuantState, its second level, MatmulLtState.
STATES = ("quant_state", "state2", "state", "CB", "SCB", "absmax", "code", "offset")


def memory_bytes(model: nn.Module) -> int:
    """Of all parameters, quantization states and buffers, in bytes, each piece of memory once. Weights on the meta
    device or on a disk count nothing."""
    tensors = (t for module in model.modules() for t in (*_weights_of(module), *module.buffers(recurse=False)))
    return _bytes(tensors)


def weight_bytes(model: nn.Module) -> int:
    """Of all weights, each once: parameters, quantization states, and the tensors that oneDNN's layers keep in their
    place; no buffers."""
    return _bytes(t for module in model.modules() for t in _weights_of(module))


def _bytes(tensors: Iterator[torch.Tensor]) -> int:
    """Two tensors that begin at one address are one piece of memory."""
    found: dict[object, int] = {}
    for tensor in tensors:
        for piece in _pieces(tensor):
            place = _place(piece)
            found[place] = max(found.get(place, 0), piece.numel() * piece.element_size())
    return sum(found.values())


def _place(tensor: torch.Tensor) -> object:
    if tensor.layout is not torch.strided:  # oneDNN's have no address
        return id(tensor)
    return str(tensor.device), tensor.data_ptr()


def _weights_of(module: nn.Module) -> Iterator[torch.Tensor]:
    yield from module.parameters(recurse=False)
    yield from (value for value in vars(module).values() if isinstance(value, torch.Tensor))
    if type(module).__module__.partition(".")[0] == "bitsandbytes":
        yield from _states(module)


def _pieces(tensor: torch.Tensor) -> Iterator[torch.Tensor]:
    """The tensors of memory that a tensor consists of, those of its quantization state with it."""
    inner = getattr(tensor, "__tensor_flatten__", None)
    if inner is not None:
        for name in inner()[0]:
            yield from _pieces(getattr(tensor, name))
        return
    if tensor.device.type != "meta":
        yield tensor
    if type(tensor) is not torch.Tensor:
        yield from _states(tensor)


def _states(holder: Any) -> Iterator[torch.Tensor]:
    held = vars(holder)
    for name in STATES:
        value = held.get(name)
        if isinstance(value, torch.Tensor):
            yield from _pieces(value)
        elif value is not None and hasattr(value, "__dict__"):
            yield from _states(value)
