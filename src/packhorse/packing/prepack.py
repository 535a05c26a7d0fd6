"""A body's linear layers as oneDNN's (see linear.py), with what follows them computed on the way."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from packhorse.packing.linear import PrepackedLinear
from packhorse.packing.residual import add_norms

MIN_WEIGHTS = 64 * 64  # smaller layers gain nothing

# What oneDNN computes on the way, by the activation's result: name, algorithm.
FUSIBLE: dict[tuple[str, str], Callable[[torch.Tensor], torch.Tensor]] = {
    ("gelu", "none"): lambda x: nn.functional.gelu(x),
    ("gelu", "tanh"): lambda x: nn.functional.gelu(x, approximate="tanh"),
    ("relu", ""): torch.relu,
    ("tanh", ""): torch.tanh,
    ("swish", ""): nn.functional.silu,
}


def prepack(body: nn.Module, run: Callable[[], object]) -> Callable[[], None]:
    """Replaces the body's linear layers and fuses what follows them. Returns what puts them back.

    run: a forward of the body, watched to see which activation takes which layer's output and nothing else.
    """
    pairs = activations_after(body, run)
    made: dict[nn.Module, PrepackedLinear] = {}
    for layer in body.modules():
        weight = weight_of(layer)
        if weight is not None:
            made[layer] = PrepackedLinear(weight, layer.bias)  # type: ignore[arg-type]
    return replace(body, {**made, **add_norms(body, made), **_fuse(pairs, made)})


class _Plain(nn.Module):
    """A PrepackedLinear in plain operators."""

    weight: torch.Tensor
    bias: torch.Tensor | None

    def __init__(self, packed: PrepackedLinear) -> None:
        super().__init__()
        self.register_buffer("weight", packed.plain_weight())  # a trace compares tensors that belong to no module
        self.register_buffer("bias", packed.bias)
        self._after = None if packed.post[0] == "none" else FUSIBLE[packed.post]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = nn.functional.linear(x, self.weight, self.bias)
        return out if self._after is None else self._after(out)

    def plus(self, x: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(x, self.weight, self.bias) + residual


def unpacked(body: nn.Module) -> Callable[[], None]:
    """Puts plain layers in the places of oneDNN's, for who traces the body: weights are copied meanwhile. Returns what
    puts oneDNN's back."""
    return replace(body, {m: _Plain(m) for m in body.modules() if isinstance(m, PrepackedLinear)})


def replace(body: nn.Module, replacements: Mapping[nn.Module, nn.Module]) -> Callable[[], None]:
    """Puts other modules in the places of some, wherever they stand in the body. Returns what puts them back."""
    places = [
        (module, name, child)
        for module in body.modules()
        for name, child in module._modules.items()
        if child is not None and child in replacements
    ]
    for module, name, child in places:
        setattr(module, name, replacements[child])

    def undo() -> None:
        for module, name, child in places:
            setattr(module, name, child)

    return undo


def weight_of(layer: nn.Module) -> torch.Tensor | None:
    """[out, in] of a plain linear layer; None of anything else, subclasses included: they may do more. So may weights
    of a tensor's subclass, as torchao's quantized ones are."""
    from transformers.pytorch_utils import Conv1D

    if type(getattr(layer, "weight", None)) not in (nn.Parameter, torch.Tensor):
        return None
    if type(layer) is nn.Linear and layer.weight.numel() >= MIN_WEIGHTS:
        return layer.weight
    if type(layer) is Conv1D and layer.weight.numel() >= MIN_WEIGHTS:
        return layer.weight.t()
    return None


def activations_after(body: nn.Module, run: Callable[[], object]) -> dict[nn.Module, list[nn.Module | None]]:
    """For every module without children and parameters that was called: the linear layers whose output it was given,
    None among them where it was given anything else."""
    made: dict[int, tuple[torch.Tensor, nn.Module]] = {}  # keeps the tensors, so that an id means one of them
    found: dict[nn.Module, list[nn.Module | None]] = {}

    def after(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if weight_of(module) is not None:
            made[id(output)] = (output, module)
        elif len(args) == 1 and isinstance(args[0], torch.Tensor):
            found.setdefault(module, []).append(made[id(args[0])][1] if id(args[0]) in made else None)

    uses: dict[int, int] = {}

    class Uses(TorchFunctionMode):
        """Counts what takes a layer's output beside the modules that are watched."""

        inside = 0

        def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if not self.inside and getattr(function, "__name__", "") != "__get__":
                for value in tree_leaves((args, kwargs or {})):
                    if id(value) in made:
                        uses[id(value)] = uses.get(id(value), 0) + 1
            return function(*args, **(kwargs or {}))

    mode = Uses()

    def before(module: nn.Module, args: tuple[Any, ...]) -> None:
        mode.inside += not any(True for _ in module.parameters())

    def leave(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        mode.inside -= not any(True for _ in module.parameters())
        after(module, args, output)

    leaves = [m for m in body.modules() if not any(True for _ in m.children())]
    handles = [h for m in leaves for h in (m.register_forward_pre_hook(before), m.register_forward_hook(leave))]
    try:
        with torch.inference_mode(), mode:
            run()
    finally:
        for handle in handles:
            handle.remove()
    shared = {made[i][1] for i in uses}
    found = {m: [None if layer in shared else layer for layer in layers] for m, layers in found.items()}
    return {m: layers for m, layers in found.items() if not any(True for _ in m.parameters())}


def _fuse(
    pairs: Mapping[nn.Module, list[nn.Module | None]], made: Mapping[nn.Module, PrepackedLinear]
) -> dict[nn.Module, nn.Module]:
    """Computes an activation in its layers where all that it is ever given comes from them, and each feeds it alone;
    nothing is left to do for these activations."""
    fed: dict[nn.Module, set[nn.Module]] = {}
    for activation, layers in pairs.items():
        for layer in layers:
            if layer is not None:
                fed.setdefault(layer, set()).add(activation)
    left: dict[nn.Module, nn.Module] = {}
    for activation, layers in pairs.items():
        mine = [made[layer] for layer in layers if layer is not None and layer in made and len(fed[layer]) == 1]
        post = post_of(activation)
        if post is None or len(mine) != len(layers):
            continue
        for fused in mine:
            fused.fuse(*post)
        left[activation] = nn.Identity()
    return left


def post_of(activation: nn.Module) -> tuple[str, str] | None:
    """Which of oneDNN's activations a module is, found by what it does to numbers."""
    x = torch.linspace(-6, 6, 101)
    try:
        with torch.inference_mode():
            result = activation(x)
    except (RuntimeError, TypeError, ValueError):
        return None
    if not isinstance(result, torch.Tensor) or result.shape != x.shape:
        return None
    return next((post for post, f in FUSIBLE.items() if torch.allclose(result, f(x), atol=1e-6)), None)
