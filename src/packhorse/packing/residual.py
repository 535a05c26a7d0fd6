"""The end of a post-norm block, LayerNorm(W x + b + residual), with the sum computed by the product on its way."""

from __future__ import annotations

import inspect
from collections.abc import Mapping

import torch
from torch import nn

from packhorse.packing.linear import PrepackedLinear

PROOF_ROWS = 3
CLOSE = {torch.float32: 1e-5, torch.bfloat16: 0.1, torch.float16: 0.01}


class AddNorm(nn.Module):
    def __init__(self, linear: PrepackedLinear, norm: nn.LayerNorm, names: tuple[str, ...]) -> None:
        super().__init__()
        self._names = names
        self.linear, self.norm = linear, norm

    def forward(self, *args: torch.Tensor, **named: torch.Tensor) -> torch.Tensor:
        """x [..., in], residual [..., out] -> [..., out], by place or by the original's names."""
        x, residual = (*args, *(named[name] for name in self._names[len(args) :]))
        if residual.shape[:-1] != x.shape[:-1]:
            return self.norm(self.linear(x) + residual)
        out: torch.Tensor = self.norm(self.linear.plus(x, residual))
        return out


def add_norms(body: nn.Module, made: Mapping[nn.Module, PrepackedLinear]) -> dict[nn.Module, nn.Module]:
    """Modules of the body that compute just that, found by their parts and proven on random numbers."""
    found: dict[nn.Module, nn.Module] = {}
    for module in body.modules():
        linears = [child for child in module.children() if child in made]
        norms = [child for child in module.children() if type(child) is nn.LayerNorm]
        others = [c for c in module.children() if not isinstance(c, nn.Dropout | nn.LayerNorm) and c not in made]
        if len(linears) == 1 and len(norms) == 1 and not others and _takes_two(module):
            block = AddNorm(made[linears[0]], norms[0], tuple(inspect.signature(module.forward).parameters))
            if _is_same(module, block, linears[0]):
                found[module] = block
    return found


def _takes_two(module: nn.Module) -> bool:
    parameters = inspect.signature(module.forward).parameters.values()
    return [p.kind for p in parameters] == [inspect.Parameter.POSITIONAL_OR_KEYWORD] * 2


def _is_same(module: nn.Module, block: AddNorm, linear: nn.Module) -> bool:
    weight = linear.weight
    if not isinstance(linear, nn.Linear) or not isinstance(weight, torch.Tensor):
        return False
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(PROOF_ROWS, linear.in_features, generator=generator).to(weight.dtype)
    residual = torch.randn(PROOF_ROWS, linear.out_features, generator=generator).to(weight.dtype)
    with torch.inference_mode():
        expected, seen = module(x, residual), block(x, residual)
    return torch.allclose(expected.float(), seen.float(), atol=CLOSE.get(weight.dtype, 0.0))
