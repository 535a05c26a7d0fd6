"""--attention: what was chosen is what runs, what is not here is refused with the ways to get it; and the choice of a
kernel for packed rows on CUDA, with stand-ins for the kernels."""

from __future__ import annotations

import inspect
import random
import sys
import time
import types
from collections.abc import Callable, Iterator
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from packhorse.backends.torch.attention import check_attention, implementation, pinned
from packhorse.config import EngineConfig, validated
from packhorse.errors import ModelError, UsageError
from packhorse.packing import attention
from packhorse.packing.pack import make_pack
from tests.cpu import packable, reference
from tests.cpu.engine import load

TOLERANCE = 1e-5
TEXTS = packable.texts((1, 2, 5, 30, 300, 5, 5, 17, 120, 64, 33, 2, 8, 9, 10, 11))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return packable.without_special_tokens(packable.save(tmp_path_factory.mktemp("attention"), "bert"))


@pytest.fixture(scope="module")
def expected(folder: Path) -> np.ndarray:
    return reference.logits(folder, TEXTS, max_length=packable.MAX_LENGTH).softmax(1).numpy()


Flags = dict[str, bool]


def sdpa_flags() -> Flags:
    """Which backends SDPA may use now."""
    cuda = torch.backends.cuda
    return {
        "flash": cuda.flash_sdp_enabled(), "efficient": cuda.mem_efficient_sdp_enabled(),
        "math": cuda.math_sdp_enabled(), "cudnn": cuda.cudnn_sdp_enabled(),
    }  # fmt: skip


def all_on() -> None:
    cuda = torch.backends.cuda
    for switch in (cuda.enable_flash_sdp, cuda.enable_mem_efficient_sdp, cuda.enable_math_sdp, cuda.enable_cudnn_sdp):
        switch(True)


@pytest.fixture(autouse=True)
def no_switch_stays_off() -> Iterator[None]:
    all_on()
    yield
    all_on()


@pytest.fixture()
def seen(monkeypatch: pytest.MonkeyPatch) -> list[Flags]:
    """The flags at every call of SDPA, which lasts long enough for other forwards to begin and end meanwhile."""
    flags: list[Flags] = []
    original = torch.nn.functional.scaled_dot_product_attention

    def watched(*args: Any, **kwargs: Any) -> torch.Tensor:
        time.sleep(random.choice((0, 0.001, 0.003)))
        flags.append(sdpa_flags())
        return original(*args, **kwargs)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", watched)
    return flags


# -- padded attention


@pytest.mark.parametrize(
    "name",
    ["eager", "sdpa", "sdpa:math", "sdpa:flash", pytest.param("flex_attention", marks=pytest.mark.slow)],
)
def test_every_choice_gives_the_scores_of_transformers(folder: Path, expected: np.ndarray, name: str) -> None:
    assert expected.std(0).max() > 1_000 * TOLERANCE
    with load(folder, attention=name, scores="all") as engine:
        assert engine.plan.attention == name
        assert engine.plan.batching in ("padded", "equal")
        found = np.array(engine.predict(TEXTS)["scores"].to_pylist())
    np.testing.assert_allclose(found, expected, atol=TOLERANCE)


def test_eager_never_calls_sdpa(folder: Path, seen: list[Flags]) -> None:
    with load(folder, attention="eager") as engine:
        engine.predict(TEXTS)
    assert not seen


@pytest.mark.parametrize("name", ["math", "flash"])
def test_a_chosen_sdpa_backend_is_the_only_one_in_every_forward(folder: Path, seen: list[Flags], name: str) -> None:
    """Several forwards run at the same time, and these switches belong to the whole process."""
    random.seed(0)
    with load(folder, attention=f"sdpa:{name}", max_batch_tokens=32) as engine:
        seen.clear()
        for _ in range(12):
            all_on()
            engine.predict(TEXTS)
    assert len(seen) > 100
    wrong = [flags for flags in seen if flags != {other: other == name for other in flags}]
    assert not wrong, f"{len(wrong)} of {len(seen)} calls might have used another backend"


@pytest.mark.parametrize("name", ["math", "flash"])
def test_the_switches_stand_as_before_after_a_run(folder: Path, seen: list[Flags], name: str) -> None:
    random.seed(0)
    before = sdpa_flags()
    with load(folder, attention=f"sdpa:{name}", max_batch_tokens=32) as engine:
        for _ in range(12):
            engine.predict(TEXTS)
            assert sdpa_flags() == before
    assert seen


def test_plain_sdpa_pins_nothing(folder: Path, seen: list[Flags]) -> None:
    before = sdpa_flags()
    with load(folder, attention="sdpa") as engine:
        engine.predict(TEXTS)
    assert seen and all(flags == before for flags in seen)


@pytest.mark.parametrize("name", ["flash", "efficient", "cudnn", "math"])
def test_pinned_leaves_one_backend_and_puts_the_others_back(name: str) -> None:
    before = sdpa_flags()
    with pinned(f"sdpa:{name}"):
        assert sdpa_flags() == {other: other == name for other in before}
    assert sdpa_flags() == before
    for other in ("sdpa", "eager", "packed", "flex_attention"):
        with pinned(other):
            assert sdpa_flags() == before


# -- what is not here


@pytest.mark.parametrize("name", ["sdpa:cudnn", "sdpa:efficient", "flash_attention_2", "flash_attention_3"])
def test_what_a_cpu_does_not_have_is_a_usage_error_that_names_what_it_has(folder: Path, name: str) -> None:
    with pytest.raises(UsageError, match=f"--attention {name}") as caught:
        load(folder, attention=name)
    for legal in ("packed", "sdpa", "sdpa:flash", "sdpa:math", "eager"):
        assert legal in str(caught.value)
    assert "cpu" in str(caught.value)
    assert "sdpa:cudnn" not in str(caught.value).split("here are")[1]


@pytest.mark.parametrize(
    ("name", "package"), [("flash_attention_2", "flash_attn"), ("flash_attention_3", "flash_attn")]
)
def test_a_flash_package_that_is_missing_on_a_gpu_is_named_with_its_install_command(
    monkeypatch: pytest.MonkeyPatch, name: str, package: str
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    with pytest.raises(UsageError, match=rf"{package}\w* is not installed .*pip install flash-attn") as caught:
        check_attention(name, "cuda:0")
    assert "sdpa:cudnn" in str(caught.value).split("here are")[1]


@pytest.mark.parametrize("name", ["auto", "packed", "sdpa", "sdpa:flash", "sdpa:cudnn", "sdpa:efficient", "eager"])
def test_a_gpu_has_all_of_torchs_kernels(name: str) -> None:
    check_attention(name, "cuda:1")


@pytest.mark.parametrize("name", ["flash", "sdpa:best", "FLASH_ATTENTION", ""])
def test_an_unknown_name_is_a_usage_error(folder: Path, name: str) -> None:
    with pytest.raises(UsageError, match="--attention"):
        load(folder, attention=name)


CONTRADICTIONS: list[dict[str, Any]] = [
    {"batching": "padded", "attention": "packed"},
    {"batching": "packed", "attention": "sdpa"},
    {"batching": "packed", "attention": "sdpa:math"},
    {"batching": "packed", "attention": "eager"},
    {"batching": "packed", "attention": "flex_attention"},
]


@pytest.mark.parametrize("settings", CONTRADICTIONS, ids=str)
def test_settings_that_contradict_each_other_are_a_usage_error_that_names_both(settings: dict[str, Any]) -> None:
    with pytest.raises(UsageError) as caught:
        validated(EngineConfig, {"model": "m"} | settings)
    assert "--batching" in str(caught.value) and "--attention" in str(caught.value)


@pytest.mark.parametrize(
    "settings",
    [
        {"batching": "packed"}, {"batching": "packed", "attention": "packed"}, {"attention": "packed"},
        {"batching": "padded", "attention": "sdpa:math"}, {"batching": "padded", "attention": "flash_attention_2"},
    ],
    ids=str,
)  # fmt: skip
def test_settings_that_agree_are_taken(settings: dict[str, Any]) -> None:
    validated(EngineConfig, {"model": "m"} | settings)


def test_batching_packed_of_a_model_that_cannot_be_packed_is_refused_or_said(tmp_path: Path) -> None:
    mpnet = packable.without_special_tokens(packable.save(tmp_path, "mpnet"))
    try:
        engine = load(mpnet, batching="packed", scores="all")
    except (UsageError, ModelError) as error:
        assert "packed" in str(error)
        return
    with engine:
        assert engine.plan.batching != "packed"
        assert any("padded:" in note for note in engine.plan.notes)


def request_of(name: str, precision: str) -> Any:
    return types.SimpleNamespace(attention=name, precision=precision)


@pytest.mark.parametrize(
    ("name", "precision", "of_transformers"),
    [
        ("auto", "fp32", None), ("packed", "bf16", None), ("sdpa", "fp32", "sdpa"), ("sdpa:math", "bf16", "sdpa"),
        ("eager", "fp32", "eager"), ("flex_attention", "fp32", "flex_attention"),
        ("flash_attention_2", "bf16", "flash_attention_2"), ("flash_attention_3", "fp16", "flash_attention_3"),
        ("flash_attention_2", "fp32", "sdpa"),
    ],
)  # fmt: skip
def test_the_implementation_is_named_as_transformers_names_it(
    name: str, precision: str, of_transformers: str | None
) -> None:
    """FlashAttention has no fp32 kernels."""
    assert implementation(request_of(name, precision)) == of_transformers


# -- packed attention on CUDA: which kernel, and what it is told


def naive(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, lengths: list[int], scale: float, left: int, right: int
) -> torch.Tensor:
    """q [T, h, d], k and v [T, kv, d] -> [T, h, d]. A token at i sees i - left to i + right; -1: no limit."""
    out, start = torch.zeros(*q.shape[:2], v.shape[2]), 0
    for length in lengths:
        for head in range(q.shape[1]):
            kv = head // (q.shape[1] // k.shape[1])
            for i in range(length):
                seen = [
                    j for j in range(length) if (left < 0 or i - j <= left) and (right < 0 or j - i <= right)
                ]  # fmt: skip
                at = [start + j for j in seen]
                weights = torch.softmax(k[at, kv] @ q[start + i, head] * scale, 0)
                out[start + i, head] = weights @ v[at, kv]
        start += length
    return out


class New:
    """torch 2.12 and later."""

    def __init__(self) -> None:
        self.calls: list[dict[str, Any]] = []

    def __call__(
        self, query: Any, key: Any, value: Any, cu_seq_q: Any, cu_seq_k: Any, max_q: int, max_k: int, *,
        return_aux: Any = None, scale: float | None = None, window_size: tuple[int, int] = (-1, -1),
        enable_gqa: bool = False,
    ) -> torch.Tensor:  # fmt: skip
        self.calls.append({"window_size": window_size, "enable_gqa": enable_gqa, "max": (max_q, max_k)})
        assert enable_gqa or query.shape[1] == key.shape[1] == value.shape[1]
        assert scale is not None and torch.equal(cu_seq_q, cu_seq_k) and cu_seq_q.dtype == torch.int32
        return naive(query, key, value, cu_seq_q.diff().tolist(), scale, *window_size)


class NewWithoutGqa(New):
    def __call__(
        self, query: Any, key: Any, value: Any, cu_seq_q: Any, cu_seq_k: Any, max_q: int, max_k: int, *,
        scale: float | None = None, window_size: tuple[int, int] = (-1, -1),
    ) -> torch.Tensor:  # fmt: skip
        return super().__call__(
            query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, scale=scale, window_size=window_size
        )


class Old:
    """torch 2.10 and 2.11: no scale, no window, as many key heads as query heads."""

    def __init__(self) -> None:
        self.calls: list[dict[str, Any]] = []

    def __call__(
        self, query: Any, key: Any, value: Any, cu_seq_q: Any, cu_seq_k: Any, max_q: int, max_k: int,
        is_causal: bool = False, return_aux: Any = None,
    ) -> torch.Tensor:  # fmt: skip
        self.calls.append({"is_causal": is_causal, "max": (max_q, max_k)})
        assert query.shape[1] == key.shape[1] == value.shape[1] and isinstance(is_causal, bool)
        return naive(query, key, value, cu_seq_q.diff().tolist(), query.shape[-1] ** -0.5, -1, 0 if is_causal else -1)


class Flash:
    """flash_attn_varlen_func of flash-attn 2 and 3. is_pair: some versions return the log-sum-exp beside."""

    def __init__(self, is_pair: bool = False) -> None:
        self.calls: list[dict[str, Any]] = []
        self._is_pair = is_pair

    def __call__(
        self, q: Any, k: Any, v: Any, cu_seqlens_q: Any, cu_seqlens_k: Any, max_seqlen_q: int, max_seqlen_k: int, *,
        softmax_scale: float | None = None, causal: bool = False, window_size: tuple[int, int] = (-1, -1),
    ) -> Any:  # fmt: skip
        self.calls.append({"window_size": window_size, "causal": causal, "max": (max_seqlen_q, max_seqlen_k)})
        assert softmax_scale is not None
        left, right = window_size[0], 0 if causal else window_size[1]
        out = naive(q, k, v, cu_seqlens_q.diff().tolist(), softmax_scale, left, right)
        return (out, None) if self._is_pair else out


def fake_module(name: str, **contents: Any) -> types.ModuleType:
    module = types.ModuleType(name)
    module.__spec__ = ModuleSpec(name, None)
    vars(module).update(contents)
    return module


Installs = Callable[..., None]


@pytest.fixture()
def installed(monkeypatch: pytest.MonkeyPatch) -> Installs:
    """Says which kernels this machine has."""

    def install(varlen: Any = None, flash2: Any = None, flash3: Any = None) -> None:
        torch_module = fake_module("torch.nn.attention.varlen", varlen_attn=varlen) if varlen else None
        monkeypatch.setitem(sys.modules, "torch.nn.attention.varlen", torch_module)
        for name, function in (("flash_attn", flash2), ("flash_attn_interface", flash3)):
            if function is not None:
                monkeypatch.setitem(sys.modules, name, fake_module(name, flash_attn_varlen_func=function))
            else:
                monkeypatch.delitem(sys.modules, name, raising=False)

    return install


LENGTHS = [4, 1, 7, 7, 2]
SHAPES = {"equal heads": (4, 4), "grouped": (4, 2), "one key head": (4, 1)}
WINDOWS = [(None, False), (None, True), (3, False), (3, True), (1, False), (20, True)]


def attend(heads: tuple[int, int], window: int | None, causal: bool, kernel: str = "auto") -> list[torch.Tensor]:
    """What the CUDA path makes of random rows, what the CPU path does, and the naive result; each [T, h, d]."""
    generator = torch.Generator().manual_seed(0)
    total = sum(LENGTHS)
    q, k, v = (torch.randn(1, h, total, 8, generator=generator) for h in (heads[0], heads[1], heads[1]))
    pack = make_pack(np.array(LENGTHS), "cpu", kernel)
    module, scale = torch.nn.Identity(), 0.3
    on_cpu, weights = attention.packed_attention(
        module, q, k, v, None, pack=pack, scaling=scale, is_causal=causal, sliding_window=window
    )
    assert weights is None
    on_cuda = attention._varlen(q, k, v, pack, scale, causal, window)
    flat = [x[0].transpose(0, 1) for x in (q, k, v)]
    side = -1 if window is None else window - 1
    return [on_cuda[0], on_cpu[0], naive(*flat, LENGTHS, scale, side, 0 if causal else side)]


def assert_all_equal(results: list[torch.Tensor]) -> None:
    on_cuda, on_cpu, expected = results
    torch.testing.assert_close(on_cpu, expected, atol=TOLERANCE, rtol=TOLERANCE)
    torch.testing.assert_close(on_cuda, expected, atol=TOLERANCE, rtol=TOLERANCE)


@pytest.mark.parametrize("heads", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize(("window", "causal"), WINDOWS, ids=str)
@pytest.mark.parametrize("kind", ["new", "new without gqa", "flash2", "flash3"])
def test_every_kernel_is_told_window_direction_and_heads(
    installed: Installs, kind: str, heads: tuple[int, int], window: int | None, causal: bool
) -> None:
    kernels = {"new": New(), "new without gqa": NewWithoutGqa(), "flash2": Flash(), "flash3": Flash(is_pair=True)}
    kernel = kernels[kind]
    installed(**{kind if kind.startswith("flash") else "varlen": kernel})
    assert_all_equal(attend(heads, window, causal))
    (call,) = kernel.calls
    assert call["max"] == (7, 7)
    side = -1 if window is None else window - 1
    assert call["window_size"] == (side, 0 if causal else side)
    if kind == "new":
        assert call["enable_gqa"] == (heads[0] != heads[1])
    if kind.startswith("flash"):
        assert call["causal"] == causal


@pytest.mark.parametrize("heads", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("window", [None, 7, 100])
def test_the_older_varlen_attn_is_given_a_scaled_query_and_repeated_heads(
    installed: Installs, heads: tuple[int, int], causal: bool, window: int | None
) -> None:
    """A window as long as the longest row is none."""
    kernel = Old()
    installed(varlen=kernel)
    assert_all_equal(attend(heads, window, causal))
    assert kernel.calls == [{"is_causal": causal, "max": (7, 7)}]


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("window", [1, 3, 6])
def test_the_older_varlen_attn_refuses_a_window_that_it_does_not_know(
    installed: Installs, window: int, causal: bool
) -> None:
    installed(varlen=Old())
    with pytest.raises(attention.PackingError, match="sliding window"):
        attend((4, 4), window, causal)


@pytest.mark.parametrize(
    ("here", "taken"),
    [
        ({"varlen": New, "flash2": Flash, "flash3": Flash}, "varlen"),
        ({"varlen": Old, "flash2": Flash, "flash3": Flash}, "flash3"),
        ({"varlen": Old, "flash2": Flash}, "flash2"),
        ({"varlen": Old}, "varlen"),
        ({"flash2": Flash}, "flash2"),
        ({"varlen": New}, "varlen"),
    ],
    ids=str,
)
def test_auto_takes_torchs_own_kernel_if_it_knows_windows_else_flash_attn(
    installed: Installs, here: dict[str, Any], taken: str
) -> None:
    kernels = {name: kind() for name, kind in here.items()}
    installed(**kernels)
    attend((4, 4), None, False)
    assert [name for name, kernel in kernels.items() if kernel.calls] == [taken]


@pytest.mark.parametrize(("name", "taken"), [("flash_attention_2", "flash2"), ("flash_attention_3", "flash3")])
def test_a_kernel_asked_for_by_name_is_the_one_taken(installed: Installs, name: str, taken: str) -> None:
    kernels = {"varlen": New(), "flash2": Flash(), "flash3": Flash()}
    installed(**kernels)
    assert_all_equal(attend((4, 2), 3, True, name))
    assert [name for name, kernel in kernels.items() if kernel.calls] == [taken]


def test_no_kernel_at_all_is_said_with_the_ways_to_get_one(
    installed: Installs, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed()
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    with pytest.raises(attention.PackingError, match=r"varlen_attn.*pip install flash-attn"):
        attention.varlen_kernel()


def test_this_torchs_varlen_attn_takes_what_it_is_given() -> None:
    """The real function's parameters: a renamed one would only be seen on a GPU."""
    varlen = pytest.importorskip("torch.nn.attention.varlen").varlen_attn
    signature = inspect.signature(varlen)
    given: list[inspect.BoundArguments] = []

    def bound(*args: Any, **kwargs: Any) -> torch.Tensor:
        given.append(signature.bind(*args, **kwargs))
        return args[0]

    names = set(signature.parameters)
    make = attention._torch_varlen if "window_size" in names else attention._old_torch_varlen
    kernel = make(bound, names) if make is attention._torch_varlen else make(bound)
    q = torch.randn(5, 4, 8)
    cu = torch.tensor([0, 2, 5], dtype=torch.int32)
    kernel(q, q, q, cu, 3, 0.3, True, (-1, 0))
    arguments = given[0].arguments
    assert arguments["max_q"] == arguments["max_k"] == 3 and arguments["cu_seq_q"] is cu
    assert arguments.get("window_size", (-1, 0)) == (-1, 0)


@pytest.mark.parametrize("length", [3, 255, 256, 257, 300])
@pytest.mark.parametrize(("window", "causal"), WINDOWS, ids=str)
def test_short_and_long_runs_give_the_same_attention(length: int, window: int | None, causal: bool) -> None:
    """Plain products up to MATMUL_MAX_LENGTH, SDPA beyond."""
    generator = torch.Generator().manual_seed(length)
    q, k, v = (torch.randn(1, h, 2 * length, 8, generator=generator) for h in (4, 2, 2))
    pack = make_pack(np.array([length, length]), "cpu")
    found, _ = attention.packed_attention(
        torch.nn.Identity(), q, k, v, None, pack=pack, is_causal=causal, sliding_window=window
    )
    place = torch.arange(length)
    distance = place[:, None] - place
    seen = (distance.abs() < (window or length)) & ((distance >= 0) | (not causal))
    halves = [x[0].unflatten(1, (2, length)).repeat_interleave(4 // x.shape[1], 0) for x in (q, k, v)]
    scores = (halves[0] @ halves[1].transpose(2, 3)) * 8**-0.5
    expected = torch.softmax(scores.masked_fill(~seen, float("-inf")), -1) @ halves[2]
    torch.testing.assert_close(found[0], expected.flatten(1, 2).transpose(0, 1), atol=TOLERANCE, rtol=TOLERANCE)


def test_flags_of_another_backend_are_refused(tmp_path: Path) -> None:
    model = packable.without_special_tokens(packable.save(tmp_path, "bert"))
    for settings in ({"provider": "cpu"}, {"onnx_file": "model.onnx"}):
        with pytest.raises(UsageError, match="--backend onnx"):
            load(model, backend="torch", **settings)
    pytest.importorskip("onnxruntime")
    with pytest.raises(UsageError, match="--attention eager"):
        load(model, backend="onnx", attention="eager")
