"""What the continuous engine's forwards compute, and which models its probe takes or refuses."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from packhorse.backends.torch.generation.continuous_probe import fits
from packhorse.backends.torch.generation.kv_attention import Group, StepKeys
from packhorse.backends.torch.generation.packed_decoder import PackedDecoder
from packhorse.backends.torch.generation.prefixes import MIN_TOKENS, common_prefix, goes_on_from
from tests.cpu.causal_models import HEADS, MODELS, model_of, prompts_of, texts
from tests.generators import causal_model

TRIAL = prompts_of(texts((8, 8, 6), seed=7)).tokens


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


# -- logits, and what is refused


@pytest.mark.parametrize("name", MODELS)
def test_logits_are_those_of_a_plain_forward(name: str) -> None:
    model, ids = model_of(name), texts((9, 9, 3, 30))
    decoder = PackedDecoder(model, "cpu")
    with decoder.installed():
        logits, _ = decoder.prefill(ids)
    with torch.inference_mode():
        for row, prompt in zip(logits, ids, strict=True):
            expected = model(input_ids=torch.from_numpy(prompt.astype(np.int64))[None]).logits[0, -1]
            torch.testing.assert_close(row, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", MODELS)
def test_the_probe_takes_these_models(name: str) -> None:
    assert fits(model_of(name), "cpu", TRIAL) is None


def test_the_probe_takes_half_precision() -> None:
    assert fits(causal_model("llama").to(torch.bfloat16), "cpu", TRIAL) is None


@pytest.mark.parametrize(
    ("kind", "config", "why"),
    [
        ("gemma2", HEADS, "softcap"),
        ("bloom", {}, "AttentionInterface"),
        ("falcon", {}, "AttentionInterface"),
        ("mamba", {}, "layers of other kinds"),
        ("gpt_oss", {**HEADS, "num_local_experts": 4, "num_experts_per_tok": 2}, "s_aux"),
        ("llama", {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}}, "beyond 512 tokens"),
    ],
)  # fmt: skip
def test_the_probe_refuses_in_words(kind: str, config: dict[str, Any], why: str) -> None:
    model = causal_model(kind, **config)
    before = model.config._attn_implementation
    assert why in (fits(model, "cpu", TRIAL) or "taken")
    assert model.config._attn_implementation == before


def test_the_probe_refuses_wrong_values() -> None:
    model = causal_model("llama")
    attend = model.model.layers[1].self_attn.forward

    def looks_back(hidden_states: torch.Tensor, **kwargs: Any) -> Any:
        """Mixes tokens of the sequence outside the attention function, as a convolution does."""
        return attend(hidden_states=hidden_states + 0.5 * hidden_states.roll(1, 1), **kwargs)

    model.model.layers[1].self_attn.forward = looks_back
    assert "differ" in (fits(model, "cpu", TRIAL) or "taken")


def test_the_probe_refuses_a_window_that_attention_is_not_told_of() -> None:
    """Longer than the trial's prompts, so that no value shows it."""
    model = causal_model("mistral", **HEADS, sliding_window=400)
    assert fits(model, "cpu", TRIAL) is None
    model.config.layer_types = ["full_attention", "sliding_attention", "full_attention"]
    assert "window" in (fits(model, "cpu", TRIAL) or "taken")


def test_a_rope_that_changes_is_taken_for_rows_that_stay_below() -> None:
    model = causal_model("llama", rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4})
    assert fits(model, "cpu", TRIAL, longest=512) is None


# -- attention to slots


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("heads", [4, 2])
@pytest.mark.parametrize("window", [None, 5])
def test_a_step_attends_to_each_row_s_own_keys(dtype: torch.dtype, heads: int, window: int | None) -> None:
    torch.manual_seed(0)
    lengths = [np.array([1, 9, 16]), np.array([30, 30])]
    keys, values = ([torch.randn(4, heads, 32, 8).to(dtype) for _ in lengths] for _ in range(2))
    query, key, value = (torch.randn(1, n, 5, 8).to(dtype) for n in (4, heads, heads))
    groups = [Group({0: (k, v)}, n) for k, v, n in zip(keys, values, lengths, strict=True)]
    module = type("Module", (), {"layer_idx": 0})()
    out = StepKeys(groups, "cpu").attend(module, query, key, value, None, 0.3, window)  # type: ignore[arg-type]
    places = [
        (k[slot, :, :n], v[slot, :, :n])
        for k, v, ns in zip(keys, values, lengths, strict=True)
        for slot, n in enumerate(ns)
    ]
    for row, (k, v) in enumerate(places):
        assert torch.equal(k[:, -1], key[0, :, row]) and torch.equal(v[:, -1], value[0, :, row])
        k, v = (x[:, -window:] if window else x for x in (k, v))
        k, v = (x.float().repeat_interleave(4 // heads, 0) for x in (k, v))
        weights = torch.softmax(torch.einsum("hd,hld->hl", query[0, :, row].float(), k) * 0.3, -1)
        expected = torch.einsum("hl,hld->hd", weights, v)
        torch.testing.assert_close(out[0, row].float(), expected, atol=1e-5 if dtype == torch.float32 else 0.05, rtol=0)


# -- what prompts have in common


def test_the_common_prefix_is_the_longest_that_half_of_the_prompts_go_on_from() -> None:
    rng = np.random.default_rng(1)
    for _ in range(200):
        prompts = [rng.integers(0, 2, rng.integers(1, 24)).astype(np.int32) for _ in range(rng.integers(1, 9))]
        head = rng.integers(0, 2, 18).astype(np.int32)
        prompts = [np.concatenate([head, p]) if rng.random() < 0.6 else p for p in prompts]
        found = common_prefix(prompts)
        half = max(-(-len(prompts) // 2), 2)
        candidates = [p[:n] for p in prompts for n in range(MIN_TOKENS, len(p))]
        longest = max((len(c) for c in candidates if sum(goes_on_from(p, c) for p in prompts) >= half), default=0)
        assert len(found) == longest
        assert longest == 0 or sum(goes_on_from(p, found) for p in prompts) >= half
