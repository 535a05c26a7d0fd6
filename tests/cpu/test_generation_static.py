"""Static batches against transformers' own generate(), one prompt at a time."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from transformers.cache_utils import DynamicLayer
from transformers.models.mamba import modeling_mamba

from packhorse.backends.torch.generation.growing import ROOM, GrowingLayer
from packhorse.backends.torch.generation.static import Schedule, StaticEngine
from packhorse.errors import DeviceOutOfMemoryError, ModelError, UsageError
from packhorse.generation import LENGTH, STOP
from tests.cpu.generating import ENDS, TRIAL, alone, nothing, outputs, prompts_of, stepper_of, texts
from tests.generators import causal_model

GQA = {"num_key_value_heads": 2, "head_dim": 16}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {"num_key_value_heads": 2}),
    "qwen2": ("qwen2", {"num_key_value_heads": 2}),
    "qwen3": ("qwen3", GQA),
    "gpt2": ("gpt2", {}),
    "opt": ("opt", {"ffn_dim": 128, "init_std": 0.3, "word_embed_proj_dim": 64}),
    "bloom-alibi": ("bloom", {}),
    "falcon": ("falcon", {}),
    "falcon-alibi": ("falcon", {"alibi": True}),
    "mistral-window": ("mistral", {**GQA, "sliding_window": 8}),
    "gemma3-windows": ("gemma3_text", {
        **GQA, "sliding_window": 8, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        "tie_word_embeddings": False,
    }),
    "mamba": ("mamba", {"state_size": 8}),
    "jamba-hybrid": ("jamba", {
        "num_key_value_heads": 2, "attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2,
        "num_experts": 2, "use_mamba_kernels": False, "mamba_d_state": 8,
    }),
}  # fmt: skip
LENGTHS = (3, 40, 7, 1, 90, 12, 12, 33, 2)
SAMPLED = {"do_sample": True, "temperature": 0.9, "top_p": 0.95}

_models: dict[str, Any] = {}


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def model_of(name: str) -> Any:
    if name not in _models:
        kind, config = MODELS[name]
        _models[name] = with_ends(causal_model(kind, **config))
    return _models[name]


def with_ends(model: Any) -> Any:
    """Some of the tokens that it writes end an output, so that outputs have different lengths."""
    free = [alone(model, p)[0] for p in texts(LENGTHS)]
    model.generation_config.eos_token_id = sorted({free[i][2 + 3 * i] for i in range(0, 7, 2)})
    model.generation_config.pad_token_id = 0
    return model


def engine_of(model: Any, **settings: Any) -> StaticEngine:
    return StaticEngine(model, stepper_of(model, **settings), "cpu", TRIAL)


@pytest.mark.parametrize("name", MODELS)
def test_tokens_are_those_of_generate_alone_in_every_batch(name: str) -> None:
    model = model_of(name)
    prompts = texts(LENGTHS)
    expected = [alone(model, p)[0] for p in prompts]
    engine = engine_of(model)
    if name == "mamba" and hasattr(modeling_mamba, "MambaCache"):  # of older versions of transformers
        assert not engine.pads_safely and "MambaCache has no selection of rows" in engine.notes[-1]
    else:
        assert engine.pads_safely and not engine.notes
    for max_rows, max_tokens in ((4, 10_000), (len(prompts), 10_000), (len(prompts), 60)):
        written = engine.generate(prompts_of(prompts), max_rows, max_tokens, nothing)
        assert outputs(written) == expected
    assert len({tuple(e) for e in expected}) > 4
    reasons = [STOP if e[-1] in model.generation_config.eos_token_id else LENGTH for e in expected]
    assert written.reasons.tolist() == reasons and len(set(map(len, expected))) > 2


@pytest.mark.parametrize("name", ["llama", "gpt2", "mamba"])
def test_a_sample_depends_on_neither_neighbours_nor_batch(name: str) -> None:
    model = model_of(name)
    prompts = texts(LENGTHS)
    keys = [7 * i + 1 for i in range(len(prompts))]
    engine = engine_of(model, num_return_sequences=2, **SAMPLED)
    together = outputs(engine.generate(prompts_of(prompts, keys), 18, 10_000, nothing))
    assert together == outputs(engine.generate(prompts_of(prompts, keys), 5, 200, nothing))
    for i in (0, 4, 8):
        one = prompts_of([prompts[i]], [keys[i]])
        assert together[2 * i : 2 * i + 2] == outputs(engine.generate(one, 1, 10_000, nothing))
    assert together[0] != together[1]


def test_processors_see_each_row_without_its_padding() -> None:
    model = model_of("llama")
    settings = {"repetition_penalty": 1.3, "no_repeat_ngram_size": 2, "min_new_tokens": 5}
    prompts = texts(LENGTHS)
    written = engine_of(model, **settings).generate(prompts_of(prompts), 9, 10_000, nothing)
    assert outputs(written) == [alone(model, p, **settings)[0] for p in prompts]


def test_finished_rows_leave() -> None:
    model = model_of("llama")
    prompts = texts(LENGTHS[:8])
    steps: list[tuple[int, int]] = []
    written = engine_of(model).generate(prompts_of(prompts), 8, 10_000, lambda f, c: steps.append((f, c)))
    lengths = written.lengths
    padded, decoded = 8 * max(LENGTHS), sum(c for _, c in steps[1:])
    assert sum(f for f, _ in steps) == 8 and steps[0][1] == padded
    # Eight rows: one in eight leaves at the step at which it ends, so that no step computes a finished row.
    assert decoded == (lengths - 1).sum() < 8 * (lengths.max() - 1)


def test_log_probabilities_are_those_of_the_model() -> None:
    model = model_of("qwen3")
    prompts = texts((3, 20))
    written = engine_of(model, logprobs=True).generate(prompts_of(prompts), 2, 10_000, nothing)
    assert written.logprobs is not None
    for i, prompt in enumerate(prompts):
        ids = written.ids[written.offsets[i] : written.offsets[i + 1]]
        whole = torch.from_numpy(np.concatenate([prompt, ids]).astype(np.int64))[None]
        with torch.inference_mode():
            every = model(whole).logits[0, len(prompt) - 1 : -1].log_softmax(-1).numpy()
        seen = written.logprobs[written.offsets[i] : written.offsets[i + 1]]
        np.testing.assert_allclose(seen, every[np.arange(len(ids)), ids], atol=1e-4)


def test_a_model_whose_padding_is_seen_runs_rows_of_equal_length() -> None:
    """A mask that never arrives: the model attends to its padding."""
    model = causal_model("llama", num_key_value_heads=2)
    model.generation_config.eos_token_id = ENDS
    own = model.model.forward
    model.model.forward = lambda *args, attention_mask=None, **kwargs: own(*args, **kwargs)
    prompts = texts((5, 9, 5, 5, 9))
    engine = engine_of(model)
    assert not engine.pads_safely and "different lengths are not padded" in engine.notes[0]
    assert outputs(engine.generate(prompts_of(prompts), 5, 1000, nothing)) == [alone(model, p)[0] for p in prompts]


def test_a_cache_that_rows_cannot_leave_keeps_them_to_the_end() -> None:
    """RWKV's state is a list of tensors, and its rows are not what each is alone."""
    model = causal_model("rwkv", num_hidden_layers=2)
    model.generation_config.eos_token_id = ENDS
    prompts = texts((5, 9, 5))
    engine = engine_of(model)
    assert engine.notes and not engine.pads_safely
    assert outputs(engine.generate(prompts_of(prompts), 3, 1000, nothing)) == [alone(model, p)[0] for p in prompts]


def test_a_prompt_without_tokens_is_an_error_and_one_without_room_is_finished() -> None:
    model = model_of("gpt2")
    prompts = texts((4, 0, 508, 512))
    finished = []
    written = engine_of(model).generate(prompts_of(prompts), 4, 10_000, lambda f, c: finished.append(f))
    assert list(written.errors) == [1] and written.errors[1].kind == "empty_prompt"
    assert written.lengths[2] <= 4 and written.lengths.tolist()[1::2] == [0, 0] and sum(finished) == 3
    assert outputs(written)[0] == alone(model, prompts[0])[0]


def test_a_row_that_waits_does_not_run_beyond_the_last_position() -> None:
    """The longest prompt ends at position 512 while a short one goes on for long, in one batch of 16 rows."""
    model = causal_model("gpt2")
    prompts = texts((*[30] * 15, 508))
    engine = engine_of(model, max_new_tokens=40)
    written = engine.generate(prompts_of(prompts), 16, 100_000, nothing)
    assert written.lengths.tolist() == [40] * 15 + [4]
    assert outputs(written)[15] == alone(model, prompts[15], max_new_tokens=4)[0]


def test_what_only_the_library_can_do_is_refused() -> None:
    model = model_of("llama")
    with pytest.raises(UsageError, match="num_beams=3"):
        engine_of(model, num_beams=3)


def test_a_model_that_generate_cannot_run_is_refused() -> None:
    model = causal_model("gpt2")

    def broken(*args: Any, **kwargs: Any) -> None:
        raise ValueError("a wrong shape")

    stepper = stepper_of(model)
    model.forward = broken
    with pytest.raises(ModelError, match="a wrong shape"):
        StaticEngine(model, stepper, "cpu", TRIAL)


def test_out_of_memory_has_its_own_name() -> None:
    model = causal_model("gpt2")
    engine = engine_of(model)

    def full(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")

    model.forward = full
    with pytest.raises(DeviceOutOfMemoryError, match="9 bytes"):
        engine.generate(prompts_of(texts((4,))), 1, 100, nothing)


@pytest.mark.parametrize("pads", [True, False])
@pytest.mark.parametrize("samples", [1, 3])
@pytest.mark.parametrize("target", [None, 20])
def test_a_schedule_holds_every_output_once_within_its_limits(pads: bool, samples: int, target: int | None) -> None:
    lengths = np.random.default_rng(0).integers(0, 30, 200)
    schedule = Schedule(lengths, samples, 8, 90, pads, True, target)
    seen: list[int] = []
    while (batch := schedule.next()) is not None:
        seen += batch.tolist()
        of = lengths[batch // samples]
        assert len(batch) <= 8 and (pads or len(set(of)) == 1) and of.min() > 0
        assert len(batch) == 1 or of.max() * len(set(batch // samples)) <= 90
        assert target is None or len(batch) == 1 or len(batch) * of.max() <= 90
        schedule.learn([5] * len(batch))
    assert sorted(seen) == [p * samples + s for p in np.flatnonzero(lengths) for s in range(samples)]


def test_a_growing_layer_is_a_dynamic_layer() -> None:
    torch.manual_seed(0)
    ours, theirs = GrowingLayer(), DynamicLayer()
    for step in range(2 * ROOM + 5):
        new = torch.randn(3 if step < ROOM else 2, 2, 4 if step == 0 else 1, 8)
        if step == ROOM:
            for layer in (ours, theirs):
                layer.reorder_cache(torch.tensor([2, 0]))
        assert all(torch.equal(a, b) for a, b in zip(ours.update(new, -new), theirs.update(new, -new), strict=True))
    assert ours.get_seq_length() == theirs.get_seq_length() == 2 * ROOM + 8
