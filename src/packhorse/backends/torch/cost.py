"""FLOPs of a model, from its linear layers and attention products as they really run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from packhorse.data import ModelDescription, Reduction
from packhorse.model_cost import AttentionCost, ModelCost

ROWS = 2
PRODUCTS = frozenset({"matmul", "__matmul__", "bmm", "baddbmm"})


def measure_cost(
    model: Any, description: ModelDescription, ids: torch.Tensor, reduction: Reduction | None = None
) -> ModelCost:
    """2 FLOPs a weight and position for linear layers; 2 a multiplication for the products of attention.

    ids: [2, S], S > 1, on any device, meta too. A forward of them tells which layers run once a token (2 x S positions)
    and which once a row (2), and how wide the attention of every layer is. Of attention the pairs of tokens count that
    the masks leave: see AttentionCost. Embedding look-ups, norms and activations count 0, as in the usual model-FLOPs
    utilization (PaLM, appendix B). reduction: where the head is called on some of the tokens alone (_reading).
    """
    linear = {ids.numel(): 0.0, ROWS: 0.0}
    body, of_head = set(model.base_model.modules()), 0.0

    def count(module: Any, args: tuple[Any, ...], _output: Any) -> None:
        nonlocal of_head
        positions, flops = args[0].shape[:-1].numel(), 2.0 * _num_weights(module)
        if positions in linear:
            linear[positions] += flops
        if positions == ids.numel() and module not in body:
            of_head += flops

    watch = _AttentionWatch(model.config, ids.shape[1], 4.0 * description.attention_width)
    with _hooked(_linear_layers(model), count), watch.hooked(model), watch, torch.inference_mode():
        model(input_ids=ids)
    attention = watch.found() or full_attention(description)
    return _reading(ModelCost(linear[ids.numel()], linear[ROWS], attention), of_head, reduction)


def _reading(cost: ModelCost, of_head: float, reduction: Reduction | None) -> ModelCost:
    """The cost where a head of that many FLOPs a token is called on one token a row (mask tokens: a row with several
    counts as if it had one), or on all but one (what a causal model scores)."""
    if reduction is None or not reduction.reads_vocabulary or reduction.kind == "sparse":
        return cost
    if reduction.per == "token":
        return replace(cost, per_row=cost.per_row - of_head)
    return replace(cost, per_token=cost.per_token - of_head, per_row=cost.per_row + of_head)


def full_attention(description: ModelDescription) -> tuple[AttentionCost, ...]:
    """4 x width x layers FLOPs for every pair of tokens: what a config tells of a model that cannot be watched."""
    return (AttentionCost(4.0 * description.attention_width * description.num_layers),)


# -- linear layers


def _linear_layers(model: nn.Module) -> list[nn.Module]:
    from transformers.pytorch_utils import Conv1D  # GPT-2's linear layer

    return [m for m in model.modules() if isinstance(m, nn.Linear | Conv1D)]


def _num_weights(layer: Any) -> int:
    """By the layer's shape: two 4-bit weights are one number of its tensor."""
    if isinstance(layer, nn.Linear):
        return layer.in_features * layer.out_features
    return int(layer.weight.numel())


@contextmanager
def _hooked(modules: list[nn.Module], after: Callable[..., None], before: Any = None) -> Iterator[None]:
    """Calls hooks around every module's forward inside the block."""
    handles = [m.register_forward_hook(after) for m in modules]
    if before is not None:
        handles += [m.register_forward_pre_hook(before) for m in modules]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


# -- attention


class _Mask(NamedTuple):
    """Which pairs of tokens a layer's mask leaves."""

    is_causal: bool
    reach: int | None


class _AttentionWatch(TorchFunctionMode):
    """Adds up the products over pairs of tokens, by the mask of the attention layer in which they run.

    A layer is a module that says whether it is causal, as all do that use transformers' AttentionInterface. Where one
    runs without a product that torch shows (flex_attention, flash-attn), it counts `usual` FLOPs a pair.
    """

    def __init__(self, config: Any, length: int, usual: float) -> None:
        super().__init__()
        self._config, self._length, self._usual = config, length, usual
        self._inside: list[list[float]] = []  # of the layers that run now, the inner ones last: FLOPs a pair
        self._found: dict[_Mask, float] = {}

    def hooked(self, model: nn.Module) -> Any:
        layers = [m for m in model.modules() if isinstance(getattr(m, "is_causal", None), bool)]
        return _hooked(layers, self._leave, lambda _layer, _args: self._inside.append([]))

    def found(self) -> tuple[AttentionCost, ...]:
        return tuple(AttentionCost(flops, *mask) for mask, flops in self._found.items())

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = function(*args, **kwargs)
        if function is F.scaled_dot_product_attention:
            query, _, value = (args + tuple(kwargs[n] for n in ("query", "key", "value") if n in kwargs))[:3]
            width = query.shape[1] * (query.shape[-1] + value.shape[-1])  # heads x (head size of keys, of values)
            self._add(2.0 * width, bool(kwargs.get("is_causal", False)))
        elif getattr(function, "__name__", "") in PRODUCTS:
            left, right = _operands(function, args, kwargs)
            self._add(self._flops_per_pair(left, right, out), False)
        return out

    def _flops_per_pair(self, left: Any, right: Any, out: torch.Tensor) -> float:
        """Of a product that makes scores [..., S, S] of a row's tokens, or uses them; 0 of any other."""
        square = (self._length, self._length)
        if out.ndim < 3 or isinstance(right, nn.Parameter) or left.shape[-1] == 1:
            return 0.0
        if square not in (tuple(out.shape[-2:]), tuple(left.shape[-2:])):
            return 0.0
        return 2.0 * out.numel() * left.shape[-1] / (ROWS * self._length**2)

    def _add(self, flops: float, is_causal: bool) -> None:
        if flops and self._inside:
            self._inside[-1].append(flops)
        elif flops:
            self._count(_Mask(is_causal, None), flops)

    def _leave(self, layer: nn.Module, _args: Any, _output: Any) -> None:
        seen = self._inside.pop()
        self._count(_mask_of(layer, self._config), sum(seen) if seen else self._usual)
        if self._inside:
            self._inside[-1].append(0.0)  # the outer one is seen by what is inside it

    def _count(self, mask: _Mask, flops: float) -> None:
        if flops:
            self._found[mask] = self._found.get(mask, 0.0) + flops


def _operands(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
    """The two factors of a product; baddbmm has what it adds before them."""
    first = 1 if function.__name__ == "baddbmm" else 0
    left, right = (*args, *kwargs.values())[first : first + 2]
    return left, right


def _mask_of(layer: Any, config: Any) -> _Mask:
    """transformers' windows are of keys that a query sees on one side, its own counted: |i - j| < window.

    A layer without a window of its own takes its config's, where the config lists no kinds of layers (Mistral), or
    lists this one as sliding. Any other kind than sliding counts as if it had no window.
    """
    config = getattr(layer, "config", config)
    is_causal = bool(layer.is_causal and getattr(config, "is_causal", True) is not False)
    if hasattr(layer, "sliding_window"):
        window = layer.sliding_window
    else:
        kinds, index = getattr(config, "layer_types", None), getattr(layer, "layer_idx", None)
        is_sliding = kinds is None or (index in range(len(kinds)) and kinds[index] == "sliding_attention")
        window = getattr(config, "sliding_window", None) if is_sliding else None
    return _Mask(is_causal, window - 1 if isinstance(window, int) and window > 0 else None)
