"""Linear layers in oneDNN's order: the values stay, an activation is computed on the way only where that is the same,
and undo() puts back the very same modules."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from packhorse.packing.linear import PrepackedLinear, is_available
from packhorse.packing.prepack import MIN_WEIGHTS, prepack
from packhorse.packing.residual import AddNorm
from tests.cpu import packable

pytestmark = pytest.mark.skipif(not is_available(torch.float32), reason="this torch has no oneDNN linear layers")
WIDTH = 64
TOLERANCE = 1e-5


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def tokens(dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(1, 37, WIDTH, generator=torch.Generator().manual_seed(1)).to(dtype) * 2


def linear(**options: Any) -> nn.Linear:
    return nn.Linear(WIDTH, WIDTH, **options)


def replaced(body: nn.Module, *calls: torch.Tensor) -> Callable[[], None]:
    """prepack()s a body; checks that its values are what they were. Returns undo()."""
    inputs = calls or (tokens(),)
    with torch.inference_mode():
        before = [body(x) for x in inputs]
        undo = prepack(body, lambda: body(inputs[0]))
        for x, expected in zip(inputs, before, strict=True):
            torch.testing.assert_close(body(x), expected, atol=TOLERANCE, rtol=TOLERANCE)
    return undo


class Feedforward(nn.Module):
    def __init__(self, activation: nn.Module) -> None:
        super().__init__()
        self.up, self.activation, self.down = linear(), activation, linear(bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(self.activation(self.up(x)))


class Called(nn.Module):
    """An activation as transformers writes them: a module around a function."""

    def __init__(self, function: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.function(x)


ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "gelu": nn.GELU, "gelu tanh": lambda: nn.GELU("tanh"), "relu": nn.ReLU, "silu": nn.SiLU, "tanh": nn.Tanh,
    "gelu by hand": lambda: Called(lambda x: x * 0.5 * (1 + torch.erf(x / 2**0.5))),
    "relu by hand": lambda: Called(lambda x: x.clamp(min=0)),
}  # fmt: skip
OTHERS: dict[str, Callable[[], nn.Module]] = {
    "leaky relu": nn.LeakyReLU, "mish": nn.Mish, "identity": nn.Identity, "dropout": nn.Dropout,
    "quick gelu": lambda: Called(lambda x: x * torch.sigmoid(1.702 * x)), "elu": nn.ELU,
    "softmax": lambda: nn.Softmax(-1), "glu": lambda: Called(lambda x: F.gelu(x) * x.mean()),
}  # fmt: skip


@pytest.mark.parametrize("name", ["gelu", "gelu_new", "gelu_pytorch_tanh", "relu", "silu", "swish"])
def test_the_activations_of_transformers_are_fused(name: str) -> None:
    from transformers.activations import ACT2FN

    body = Feedforward(ACT2FN[name]).eval()
    replaced(body)
    assert isinstance(body.up, PrepackedLinear) and isinstance(body.down, PrepackedLinear)
    assert type(body.activation) is nn.Identity


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_a_known_activation_is_fused_whoever_wrote_it(name: str) -> None:
    body = Feedforward(ACTIVATIONS[name]()).eval()
    replaced(body)
    assert type(body.activation) is nn.Identity


@pytest.mark.parametrize("name", OTHERS)
def test_any_other_module_stays_as_it_is(name: str) -> None:
    activation = OTHERS[name]()
    body = Feedforward(activation).eval()
    replaced(body)
    assert body.activation is activation and isinstance(body.up, PrepackedLinear)


def test_rows_of_any_number_and_shape_give_the_values_of_before() -> None:
    shapes = [(1, 2, WIDTH), (3, 5, WIDTH), (7, WIDTH), (1, 700, WIDTH)]
    replaced(Feedforward(nn.GELU()).eval(), *(torch.randn(shape) for shape in shapes))


class Wired(nn.Module):
    """A linear layer and an activation, wired as told."""

    def __init__(self, wiring: Callable[[Wired, torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.first, self.second, self.activation, self.other = linear(), linear(), nn.GELU(), nn.ReLU()
        self.norm = nn.LayerNorm(WIDTH)
        self._wiring = wiring

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self._wiring(self, x)


def twice(use: Callable[[Wired, torch.Tensor], torch.Tensor]) -> Callable[[Wired, torch.Tensor], torch.Tensor]:
    """The layer's output goes through the activation, and into `use` as well."""

    def forward(m: Wired, x: torch.Tensor) -> torch.Tensor:
        h = m.first(x)
        return m.activation(h) + use(m, h)

    return forward


WIRINGS: dict[str, Callable[[Wired, torch.Tensor], torch.Tensor]] = {
    "output used by another activation": twice(lambda m, h: m.other(h)),
    "output used by another linear layer": twice(lambda m, h: m.second(h)),
    "output used by a norm": twice(lambda m, h: m.norm(h)),
    "output added to the activation's": twice(lambda m, h: h),
    "output used by a function": twice(lambda m, h: torch.sigmoid(h)),
    "output used by the same activation, changed": twice(lambda m, h: m.activation(h * 0.5)),
    "activation of something else as well": lambda m, x: m.activation(m.first(x)) + m.activation(x),
    "activation of something else alone": lambda m, x: m.first(x) + m.activation(x),
    "activation of a changed output": lambda m, x: m.activation(m.first(x) + 1),
    "activation of a norm of the output": lambda m, x: m.activation(m.norm(m.first(x))),
    "activation before the layer": lambda m, x: m.first(m.activation(x)),
    "activation of a small layer": lambda m, x: m.activation(x[..., :8]).sum() + m.first(x),
}


@pytest.mark.parametrize("name", WIRINGS)
def test_an_activation_is_not_fused_where_that_would_change_the_values(name: str) -> None:
    body = Wired(WIRINGS[name]).eval()
    activation = body.activation
    replaced(body)
    assert body.activation is activation and isinstance(body.first, PrepackedLinear)


def test_one_activation_behind_two_layers_is_fused_into_both() -> None:
    body = Wired(lambda m, x: m.activation(m.first(x)) + m.activation(m.second(x))).eval()
    replaced(body)
    assert type(body.activation) is nn.Identity


def test_a_gate_is_fused_and_what_it_multiplies_is_not() -> None:
    body = Wired(lambda m, x: m.activation(m.first(x)) * m.second(x)).eval()
    replaced(body)
    assert type(body.activation) is nn.Identity


class TwoNames(nn.Module):
    """One layer and one activation, each under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.activation = linear(), nn.GELU()
        self.tied, self.function = self.up, self.activation

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.activation(self.tied(self.function(self.up(x))))


def test_layers_and_activations_under_two_names_keep_their_values() -> None:
    body = TwoNames().eval()
    modules = dict(body._modules)
    replaced(body)()
    assert all(body._modules[name] is module for name, module in modules.items())


def test_small_and_foreign_layers_are_left_alone() -> None:
    class Scaled(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) * 3

    small = nn.Linear(WIDTH, MIN_WEIGHTS // WIDTH - 1)
    body = nn.Sequential(Scaled(WIDTH, WIDTH), nn.GELU(), small)
    modules = list(body)
    replaced(body.eval())
    assert all(a is b for a, b in zip(body, modules, strict=True))


# -- the end of a post-norm block


class End(nn.Module):
    """LayerNorm(W x + b + residual), or something like it."""

    def __init__(self, wiring: Callable[[End, torch.Tensor, torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.dense, self.norm, self.dropout = linear(), nn.LayerNorm(WIDTH), nn.Dropout(0.5)
        nn.init.normal_(self.norm.weight)
        nn.init.normal_(self.norm.bias)
        self._wiring = wiring

    def forward(self, hidden: torch.Tensor, before: torch.Tensor) -> torch.Tensor:
        return self._wiring(self, hidden, before)


class Block(nn.Module):
    def __init__(self, end: nn.Module, call: Callable[[nn.Module, torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.end, self._call = end, call

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self._call(self.end, x)


def usual(m: End, x: torch.Tensor, before: torch.Tensor) -> torch.Tensor:
    return m.norm(m.dropout(m.dense(x)) + before)


CALLS: dict[str, Callable[[nn.Module, torch.Tensor], torch.Tensor]] = {
    "as usual": lambda end, x: end(x * 0.5, x),
    "by name": lambda end, x: end(hidden=x * 0.5, before=x),
    "by name the other way round": lambda end, x: end(before=x, hidden=x * 0.5),
    "half by name": lambda end, x: end(x * 0.5, before=x),
    "a residual for all tokens": lambda end, x: end(x, x[:, :1]),
    "a residual for all rows": lambda end, x: end(x.expand(3, -1, -1), x),
    "a residual that is no contiguous block": lambda end, x: end(x, x.transpose(1, 2).contiguous().transpose(1, 2)),
    "an input that is no contiguous block": lambda end, x: end(x.transpose(1, 2).contiguous().transpose(1, 2), x),
    "input and residual the same": lambda end, x: end(x, x),
    "two calls": lambda end, x: end(end(x, x * 2), x),
    "a residual used afterwards": lambda end, x: end(x, x) + x,
}


@pytest.mark.parametrize("name", CALLS)
def test_a_block_with_its_residual_gives_the_values_of_before_however_it_is_called(name: str) -> None:
    block = Block(End(usual), CALLS[name]).eval()
    end = block.end
    undo = replaced(block)
    undo()
    assert block.end is end and type(end.dense) is nn.Linear


def test_the_usual_end_of_a_block_is_one_product() -> None:
    block = Block(End(usual), CALLS["as usual"]).eval()
    replaced(block)
    assert isinstance(block.end, AddNorm)


ENDS: dict[str, Callable[[End, torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "norm before the sum": lambda m, x, r: m.norm(m.dense(x)) + r,
    "residual after the norm as well": lambda m, x, r: m.norm(m.dense(x) + r) + r,
    "no residual": lambda m, x, r: m.norm(m.dense(x)),
    "scaled residual": lambda m, x, r: m.norm(m.dense(x) + 2 * r),
    "scaled product": lambda m, x, r: m.norm(m.dense(x) * 0.5 + r),
    "an activation by function": lambda m, x, r: m.norm(F.gelu(m.dense(x)) + r),
    "the arguments swapped": lambda m, x, r: m.norm(m.dense(r) + x),
    "no norm": lambda m, x, r: m.dense(x) + r,
    "a mean over tokens": lambda m, x, r: m.norm(m.dense(x) + r.mean(-2, keepdim=True)),
}


@pytest.mark.parametrize("name", ENDS)
def test_another_end_of_a_block_stays_as_it_is(name: str) -> None:
    block = Block(End(ENDS[name]), CALLS["as usual"]).eval()
    replaced(block)
    assert isinstance(block.end, End)


def test_berts_blocks_end_in_one_product_each() -> None:
    body = packable.made("bert", "AutoModel")
    prepack(body, forward_of(body))
    assert sum(isinstance(m, AddNorm) for m in body.modules()) == 4  # two layers: after attention, after the MLP


# -- whole models


def forward_of(body: Any) -> Callable[[], torch.Tensor]:
    ids = torch.stack(packable.ids_of((12, 12)))
    return lambda: body(input_ids=ids).last_hidden_state


def is_large_linear(module: nn.Module) -> bool:
    return type(module).__name__ in ("Linear", "Conv1D") and module.weight.numel() >= MIN_WEIGHTS


MODELS = ["bert", "roberta", "distilbert", "electra", "albert", "modernbert", "nomic_bert", "qwen3", "gpt2", "opt"]
FUSED = {"bert": 2, "roberta": 2, "distilbert": 2, "electra": 2, "albert": 1, "nomic_bert": 2, "qwen3": 2, "gpt2": 2}


@pytest.mark.parametrize("kind", MODELS)
def test_a_models_values_stay_and_undo_restores_its_very_modules(kind: str) -> None:
    body = packable.made(kind, "AutoModel")
    run, modules = forward_of(body), dict(body.named_modules(remove_duplicate=False))
    with torch.inference_mode():
        before = run()
        undo = prepack(body, run)
        found = run()
        layers = {id(m) for m in body.modules() if isinstance(m, PrepackedLinear)}
        assert layers and not any(is_large_linear(m) for m in body.modules())
        torch.testing.assert_close(found, before, atol=TOLERANCE, rtol=TOLERANCE)
        fused = sum(type(m) is nn.Identity for m in body.modules())
        assert kind not in FUSED or fused >= FUSED[kind]
        undo()
        assert torch.equal(run(), before)
    again = dict(body.named_modules(remove_duplicate=False))
    assert again.keys() == modules.keys() and all(again[name] is modules[name] for name in modules)


def test_gpt2s_linear_layers_have_their_weights_the_other_way_round() -> None:
    body = packable.made("gpt2", "AutoModel")
    assert type(body.h[0].mlp.c_fc).__name__ == "Conv1D"
    run = forward_of(body)
    prepack(body, run)
    assert isinstance(body.h[0].mlp.c_fc, PrepackedLinear) and type(body.h[0].mlp.act) is nn.Identity


def test_alberts_shared_layer_is_one_layer_still() -> None:
    body = packable.made("albert", "AutoModel", num_hidden_layers=3)
    run = forward_of(body)
    linears = sum(type(m) is nn.Linear for m in body.modules())
    prepack(body, run)
    packed = [m for m in body.modules() if isinstance(m, PrepackedLinear)]
    assert len(packed) <= linears and len({id(m) for m in packed}) == len(packed)


def test_a_layer_shared_by_two_modules_is_replaced_by_one() -> None:
    first, second = Feedforward(nn.GELU()), Feedforward(nn.GELU())
    second.up = first.up
    body = nn.Sequential(first, second).eval()
    replaced(body)
    assert first.up is second.up and isinstance(first.up, PrepackedLinear)


def test_a_failing_forward_leaves_no_hook_behind() -> None:
    body = Feedforward(nn.GELU())

    def fail() -> None:
        raise RuntimeError("refused")

    with pytest.raises(RuntimeError, match="refused"):
        prepack(body, fail)
    assert not any(m._forward_hooks for m in body.modules()) and type(body.up) is nn.Linear


@pytest.mark.skipif(not is_available(torch.bfloat16), reason="no bf16 linear layers")
@pytest.mark.parametrize("kind", ["bert", "gpt2", "qwen3"])
def test_in_bf16_the_values_are_close(kind: str) -> None:
    body = packable.made(kind, "AutoModel")
    run = forward_of(body)
    with torch.inference_mode():
        exact = run()
        body.to(torch.bfloat16)
        plain = run().float()
        prepack(body, run)
        found = run().float()
    rounding = (plain - exact).abs().mean()
    assert 0 < rounding < 0.1
    assert (found - exact).abs().mean() < 1.5 * rounding
    assert (found - plain).abs().mean() < 1.5 * rounding
