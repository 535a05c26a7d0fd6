"""Continuous batching against transformers' own generate() and forward, one prompt at a time."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

from packhorse.backends.torch.generation.continuous import ContinuousEngine
from packhorse.backends.torch.generation.continuous_probe import fits
from packhorse.backends.torch.generation.kv_attention import Group, StepKeys
from packhorse.backends.torch.generation.packed_decoder import PackedDecoder
from packhorse.backends.torch.generation.prefixes import MIN_TOKENS, common_prefix, goes_on_from
from packhorse.backends.torch.generation.stepping import Stepper
from packhorse.data import Int32s, Tokens, offsets_of
from packhorse.errors import DeviceOutOfMemoryError, UsageError
from packhorse.generation import FINISH_REASONS, Decoding, Generated, Prompts
from tests.generators import VOCAB, causal_model
from tests.models import word_piece_tokenizer

GQA = {"num_key_value_heads": 2}
HEADS = {**GQA, "head_dim": 16}
WINDOW = 16
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama-gqa": ("llama", GQA),
    "qwen2": ("qwen2", GQA),
    "qwen3": ("qwen3", HEADS),
    "gpt2": ("gpt2", {}),
    "mistral-window": ("mistral", {**HEADS, "sliding_window": WINDOW}),
    "gemma3-windows": ("gemma3_text", {
        **HEADS, "sliding_window": WINDOW, "layer_types": ["sliding_attention"] * 2 + ["full_attention"],
        "tie_word_embeddings": False,
    }),
    "granite-scaled-logits": ("granite", {"logits_scaling": 4.0}),
    "deepseek-wide-keys": ("deepseek_v3", {
        "n_routed_experts": 4, "q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 16,
        "v_head_dim": 16, "n_group": 1, "topk_group": 1, "num_experts_per_tok": 2, "moe_intermediate_size": 32,
    }),
}  # fmt: skip
LENGTHS = (1, 2, 5, 5, 17, 63, 64, 130, 7, 40)
ENDS = list(range(3, VOCAB, 20))  # one token in twenty ends an output: outputs of very different lengths
MAX_NEW_TOKENS = 30

_models: dict[str, Any] = {}


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def model_of(name: str) -> Any:
    if name not in _models:
        kind, config = MODELS[name]
        _models[name] = causal_model(kind, **config)
    return _models[name]


def texts(lengths: Sequence[int] = LENGTHS, seed: int = 0) -> list[Int32s]:
    rng = np.random.default_rng(seed)
    return [rng.integers(2, VOCAB, n).astype(np.int32) for n in lengths]


def prompts_of(ids: Sequence[Int32s], keys: Sequence[int] | None = None) -> Prompts:
    lengths = np.array([len(i) for i in ids], np.int64)
    tokens = Tokens(np.concatenate(ids), offsets_of(lengths))
    return Prompts(tokens, np.array(range(len(ids)) if keys is None else keys, np.uint64))


TRIAL = prompts_of(texts((8, 8, 6), seed=7)).tokens


def engine_of(model: Any, **settings: Any) -> ContinuousEngine:
    decoding = Decoding({"do_sample": False, "max_new_tokens": MAX_NEW_TOKENS, **settings}, seed=3)
    return ContinuousEngine(model, Stepper(model, word_piece_tokenizer(), decoding, 512), "cpu")


def outputs(generated: Generated) -> list[list[int]]:
    return [generated.ids[a:b].tolist() for a, b in itertools.pairwise(generated.offsets)]


def run(engine: ContinuousEngine, ids: Sequence[Int32s], max_rows: int, max_tokens: int = 1_024) -> list[list[int]]:
    return outputs(engine.generate(prompts_of(ids), max_rows, max_tokens, lambda rows, tokens: None))


def alone(model: Any, ids: Sequence[Int32s], **settings: Any) -> list[list[int]]:
    """What generate() writes after each prompt."""
    settings = {"do_sample": False, "max_new_tokens": MAX_NEW_TOKENS, "pad_token_id": 0, **settings}
    written = []
    for prompt in ids:
        row = torch.from_numpy(prompt.astype(np.int64))[None]
        out = model.generate(row, attention_mask=torch.ones_like(row), **settings)
        written.append(out[0, len(prompt) :].tolist())
    return written


# -- the same tokens


@pytest.mark.parametrize("name", MODELS)
def test_greedy_tokens_are_those_of_generate_one_prompt_at_a_time(name: str) -> None:
    model, ids = model_of(name), texts()
    expected = alone(model, ids, eos_token_id=ENDS)
    assert len({len(output) for output in expected}) > 2, "outputs of one length show no batching"
    assert len({tuple(output) for output in expected}) == len(expected), "outputs too alike to tell a mix-up"
    engine = engine_of(model, eos_token_id=ENDS)
    for max_rows, max_tokens in ((1, 1_024), (3, 50), (64, 8_192)):
        assert run(engine, ids, max_rows, max_tokens) == expected
    assert run(engine, ids[::-1], 4) == expected[::-1]


@pytest.mark.parametrize("name", ["llama-gqa", "gpt2", "mistral-window"])
def test_long_prompts_are_computed_in_pieces(name: str) -> None:
    model, ids = model_of(name), texts((130, 5, 77))
    assert run(engine_of(model), ids, 3, max_tokens=24) == alone(model, ids)


def test_max_new_tokens_one_needs_no_slot() -> None:
    model, ids = model_of("llama"), texts()
    assert run(engine_of(model, max_new_tokens=1), ids, 4) == alone(model, ids, max_new_tokens=1)


def test_rows_that_outgrow_several_buckets() -> None:
    model, ids = model_of("llama-gqa"), texts((3, 60, 61, 100))
    assert run(engine_of(model, max_new_tokens=150), ids, 3) == alone(model, ids, max_new_tokens=150)


def test_where_a_row_stops_is_said() -> None:
    model, ids = model_of("llama"), texts()
    generated = engine_of(model, eos_token_id=ENDS).generate(prompts_of(ids), 4, 1_024, lambda rows, tokens: None)
    for output, reason in zip(outputs(generated), generated.reasons, strict=True):
        assert FINISH_REASONS[reason] == ("stop" if output[-1] in ENDS else "length")


def test_a_prompt_without_tokens_is_an_error_row_and_the_others_are_written() -> None:
    model, ids = model_of("llama"), texts((5, 9))
    generated = engine_of(model).generate(
        prompts_of([ids[0], np.empty(0, np.int32), ids[1]]), 4, 1_024, lambda rows, tokens: None
    )
    assert list(generated.errors) == [1]
    written = outputs(generated)
    assert [written[0], written[2]] == alone(model, ids) and written[1] == []


def test_a_prompt_that_fills_the_model_writes_nothing_and_ends_no_job() -> None:
    model, ids = model_of("llama"), texts((512, 9))
    assert run(engine_of(model), ids, 4) == [[], *alone(model, ids[1:])]


# -- samples


def sampled_alone(model: Any, ids: Sequence[Int32s], keys: Sequence[int], settings: dict[str, Any]) -> list[list[int]]:
    """Every sample by itself: a plain forward over all of it for each token, the Stepper with this one row."""
    stepper = Stepper(model, word_piece_tokenizer(), Decoding(settings, seed=3), 512)
    written = []
    for prompt, key, sample in ((p, k, s) for p, k in zip(ids, keys, strict=True) for s in range(stepper.num_samples)):
        row = stepper.row(prompt, key, sample)
        while not row.is_done:
            so_far = torch.tensor([[*prompt.tolist(), *row.ids]])
            with torch.inference_mode():
                stepper.step([row], model(input_ids=so_far).logits[:, -1])
        written.append(list(row.ids))
    return written


def test_samples_share_a_prefill_and_depend_on_no_neighbour() -> None:
    model, ids, keys = model_of("llama-gqa"), texts((1, 5, 17, 64)), [40, 10, 30, 20]
    settings = {
        "do_sample": True,
        "temperature": 2.0,
        "num_return_sequences": 3,
        "max_new_tokens": 12,
        "eos_token_id": ENDS,
    }
    expected = sampled_alone(model, ids, keys, settings)
    assert len({tuple(output) for output in expected}) == len(expected)
    engine = engine_of(model, **settings)
    for max_rows in (1, 2, 3, 5, 64):  # fewer slots than samples, too
        steps: list[tuple[int, int]] = []
        generated = engine.generate(prompts_of(ids, keys), max_rows, 1_024, lambda r, t, s=steps: s.append((r, t)))
        assert outputs(generated) == expected
        assert sum(rows for rows, _ in steps) == len(expected)
        if max_rows >= 3:
            written = sum(len(output) - 1 for output in expected)
            assert sum(tokens for _, tokens in steps) == sum(map(len, ids)) + written


# -- the schedule


def test_nothing_but_real_tokens_is_computed_and_the_schedule_is_a_function_of_its_input() -> None:
    model, ids = model_of("llama"), texts()
    engine = engine_of(model, eos_token_id=ENDS)
    runs: list[list[tuple[int, int]]] = [[], []]
    for steps in runs:
        generated = engine.generate(prompts_of(ids), 4, 64, lambda r, t, s=steps: s.append((r, t)))
    assert runs[0] == runs[1]
    assert sum(rows for rows, _ in runs[0]) == len(ids)
    assert sum(tokens for _, tokens in runs[0]) == sum(map(len, ids)) + int((generated.lengths - 1).sum())
    assert max(tokens for _, tokens in runs[0]) <= 64


def test_a_finished_row_s_place_is_taken_before_the_others_finish() -> None:
    model, ids = model_of("llama"), texts()
    lengths = [len(output) for output in alone(model, ids, eos_token_id=ENDS)]
    steps: list[int] = []
    engine_of(model, eos_token_id=ENDS).generate(prompts_of(ids), 4, 1_024, lambda rows, tokens: steps.append(tokens))
    order = sorted(range(len(ids)), key=lambda i: -len(ids[i]))
    in_batches = sum(max(lengths[i] for i in order[first : first + 4]) for first in range(0, len(ids), 4))
    assert len(steps) < in_batches


def test_a_beginning_that_prompts_share_is_computed_once() -> None:
    model = model_of("llama-gqa")
    system = texts((70,), seed=5)[0]
    ids = [*(np.concatenate([system, text]) for text in texts((1, 4, 4, 30))), *texts((3, 90), seed=6)]
    expected = alone(model, ids)
    for max_rows, max_tokens in ((2, 1_024), (64, 1_024), (64, 20)):  # the prefix itself in pieces, too
        steps: list[int] = []
        generated = engine_of(model).generate(
            prompts_of(ids), max_rows, max_tokens, lambda rows, tokens, s=steps: s.append(tokens)
        )
        assert outputs(generated) == expected
        assert sum(steps) == sum(map(len, ids)) - 3 * len(system) + len(ids) * (MAX_NEW_TOKENS - 1)


@pytest.mark.parametrize("name", ["gpt2", "mistral-window", "gemma3-windows", "deepseek-wide-keys"])
def test_a_shared_beginning_changes_no_token(name: str) -> None:
    system = texts((33,), seed=5)[0]
    ids = [np.concatenate([system, text]) for text in texts((1, 4, 4, 30))]
    assert run(engine_of(model_of(name)), ids, 64) == alone(model_of(name), ids)


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


def test_beams_are_refused() -> None:
    with pytest.raises(UsageError, match="--engine"):
        engine_of(model_of("llama"), num_beams=3)


def test_the_model_is_left_as_it_was() -> None:
    model = model_of("llama")
    run(engine_of(model), texts((3, 4)), 2)
    assert model.config._attn_implementation == "sdpa"


def test_out_of_memory_has_its_own_name() -> None:
    model = causal_model("llama")

    def fail(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    model.model.layers[1].register_forward_pre_hook(fail)
    with pytest.raises(DeviceOutOfMemoryError, match=r"2\.00 GiB"):
        run(engine_of(model), texts((3, 4)), 2)


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
