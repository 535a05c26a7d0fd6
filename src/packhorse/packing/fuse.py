"""The fused fast path behind unpad(model, fused=True)."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn

from packhorse.packing.linear import is_available
from packhorse.packing.pack import make_pack
from packhorse.packing.prepack import prepack

Run = Callable[[dict[str, Any]], Any]


class FusedBody:
    """A second body over the same parameters, made for speed: on a CPU with oneDNN's linear layers, on other devices
    compiled. Made anew when a parameter was changed in place or replaced."""

    def __init__(self, body: Any) -> None:
        self._body = body
        self._made: Any = None
        self._made_of: tuple[tuple[int, int], ...] = ()

    def __deepcopy__(self, memo: dict[int, Any]) -> FusedBody:
        """Without what was made: oneDNN's tensors cannot be copied."""
        return FusedBody(copy.deepcopy(self._body, memo))

    def run_or(self, plain: Run) -> Run:
        """The fused body's call; the plain one where gradients are wanted, which the fused operators have none of."""
        if torch.is_grad_enabled() and any(p.requires_grad for p in self._body.parameters()):
            return plain
        state = tuple((p.data_ptr(), 0 if p.is_inference() else p._version) for p in self._body.parameters())
        if state != self._made_of:
            self._made, self._made_of = self._make(), state
        return self._call

    def _call(self, inputs: dict[str, Any]) -> Any:
        with torch.no_grad():
            return self._made(**inputs)

    def _make(self) -> Any:
        twin = _twin(self._body, {})
        twin.__dict__.pop("forward", None)
        if self._body.device.type != "cpu":
            return torch.compile(twin, dynamic=True)
        if is_available(self._body.dtype):
            ids = {"input_ids": torch.zeros(1, 2, dtype=torch.long), "pack": make_pack(np.array([2]), "cpu")}
            prepack(twin, lambda: twin(**ids))
        return twin


def _twin(module: nn.Module, made: dict[nn.Module, nn.Module]) -> Any:
    """A tree of modules of its own over the same parameters and buffers."""
    if module not in made:
        twin = copy.copy(module)
        made[module] = twin
        twin._modules = {name: child and _twin(child, made) for name, child in module._modules.items()}
    return made[module]
