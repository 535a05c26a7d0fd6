"""One linear layer in oneDNN's own weight order.

torch's fp32 product knows only some processors, and in bf16 it reorders a weight at every call. oneDNN's linear with a
weight that was reordered once runs at up to twice that rate, and computes an activation, or a sum, on the way.
The operators are those that torch's compiler emits after freezing (torch/_inductor/fx_passes/mkldnn_fusion.py).
"""

from __future__ import annotations

import functools

import torch
from torch import nn

TYPICAL_TOKENS = 1_024  # the layout is chosen for products of about so many rows


class PrepackedLinear(nn.Module):
    """x [..., in] -> activation(x W^T + b) [..., out]."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        """weight: [out, in]. Raises RuntimeError or AttributeError where oneDNN has no such product."""
        super().__init__()
        self._packed = torch.ops.mkldnn._reorder_linear_weight(weight.detach().contiguous(), TYPICAL_TOKENS)
        self.bias = None if bias is None else bias.detach()
        self.post = "none", ""  # oneDNN's name and algorithm of the activation

    @property
    def weight(self) -> torch.Tensor:
        """In oneDNN's order, of no use but for its type: T5 asks for that before it calls a layer."""
        return self._packed

    def plain_weight(self) -> torch.Tensor:
        """A copy [out, in], equal to what was given."""
        return self._packed.to_dense()

    def fuse(self, name: str, algorithm: str) -> None:
        """The activation is computed on the way from now on."""
        self.post = name, algorithm

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        name, algorithm = self.post
        out: torch.Tensor = torch.ops.mkldnn._linear_pointwise(x, self._packed, self.bias, name, [], algorithm)
        return out

    def plus(self, x: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        """x W^T + b + residual [..., out]; no activation."""
        out: torch.Tensor = torch.ops.mkldnn._linear_pointwise.binary(x, residual, self._packed, self.bias, "add")
        return out


@functools.cache
def is_available(dtype: torch.dtype) -> bool:
    """Whether this torch and this processor have the operators for that type."""
    try:
        layer = PrepackedLinear(torch.ones(64, 64, dtype=dtype), None)
        return bool(torch.allclose(layer(torch.ones(2, 64, dtype=dtype)).float(), torch.tensor(64.0)))
    except (RuntimeError, AttributeError):  # internal operators: other versions and processors may lack them
        return False
