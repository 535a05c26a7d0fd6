"""Encoder-decoder models in static batches, and transformers' own generate() for beams, against generate() alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from packhorse.backends.torch.generation.library import LibraryEngine
from packhorse.backends.torch.generation.rows import length_groups
from packhorse.backends.torch.generation.static import StaticEngine
from packhorse.backends.torch.generation.stepping import Stepper
from packhorse.data import Tokens
from packhorse.errors import UsageError
from packhorse.generation import LENGTH, STOP, Decoding
from tests.cpu.generating import ENDS, TRIAL, alone, nothing, outputs, prompts_of, stepper_of, texts
from tests.generators import byte_level_tokenizer, causal_model, seq2seq_model, tiny_llm

MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "t5": ("t5", {}),
    "t5-gated": ("t5", {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}),
    "mt5": ("mt5", {}),
    "bart": ("bart", {}),
    "marian": ("marian", {"decoder_start_token_id": 1}),
    "pegasus": ("pegasus", {}),
    "m2m_100": ("m2m_100", {}),
}
LENGTHS = (3, 60, 7, 1, 90, 12, 12, 33)

TOKENS = Tokens(TRIAL.ids % 300, TRIAL.offsets)

_models: dict[str, Any] = {}


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def model_of(name: str) -> Any:
    """Some of the tokens that it writes end an output, so that outputs have different lengths."""
    if name not in _models:
        kind, config = MODELS[name]
        model = _models[name] = seq2seq_model(kind, **config)
        free = [alone(model, p)[0] for p in texts(LENGTHS)]
        model.generation_config.eos_token_id = sorted({free[i][2 + 3 * i] for i in (0, 2, 5)})
    return _models[name]


def engine_of(model: Any, **settings: Any) -> StaticEngine:
    return StaticEngine(model, stepper_of(model, max_length=256, **settings), "cpu", TRIAL)


@pytest.mark.parametrize("name", MODELS)
def test_tokens_are_those_of_generate_alone_in_every_batch(name: str) -> None:
    model = model_of(name)
    prompts = texts(LENGTHS)
    expected = [alone(model, p)[0] for p in prompts]
    engine = engine_of(model)
    assert engine.pads_safely and not engine.notes
    for max_rows, max_tokens in ((3, 10_000), (len(prompts), 10_000), (len(prompts), 150)):
        written = engine.generate(prompts_of(prompts), max_rows, max_tokens, nothing)
        assert outputs(written) == expected
    assert len({tuple(e) for e in expected}) >= 3
    ends = model.generation_config.eos_token_id
    assert written.reasons.tolist() == [STOP if e[-1] in ends else LENGTH for e in expected]


@pytest.mark.parametrize("name", ["t5", "bart"])
def test_samples_share_the_encoder_and_depend_on_nothing_else(name: str) -> None:
    model = model_of(name)
    prompts, keys = texts(LENGTHS), list(range(50, 58))
    engine = engine_of(model, do_sample=True, num_return_sequences=3, top_k=20)
    encoded: list[int] = []
    hook = model.get_encoder().register_forward_hook(lambda module, args, out: encoded.append(len(out[0])))
    together = outputs(engine.generate(prompts_of(prompts, keys), 24, 10_000, nothing))
    hook.remove()
    assert sum(encoded) == len(prompts)
    assert together == outputs(engine.generate(prompts_of(prompts, keys), 4, 10_000, nothing))
    assert together[3:6] == outputs(engine.generate(prompts_of(prompts[1:2], keys[1:2]), 3, 10_000, nothing))
    assert together[3] != together[4]


def test_a_forced_first_token_and_encoder_rules_hold_row_by_row() -> None:
    model = model_of("m2m_100")
    settings = {"forced_bos_token_id": 17, "repetition_penalty": 1.2, "encoder_no_repeat_ngram_size": 2}
    prompts = texts(LENGTHS)
    written = engine_of(model, **settings).generate(prompts_of(prompts), 8, 10_000, nothing)
    assert outputs(written) == [alone(model, p, **settings)[0] for p in prompts]
    assert {o[0] for o in outputs(written)} == {17}


def test_the_mask_of_the_source_is_never_dropped() -> None:
    """Of every forward with sources of different lengths: the mask counts each row's own tokens."""
    model = model_of("bart")
    seen: list[list[int]] = []
    engine = engine_of(model)
    hook = model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["attention_mask"].sum(1).tolist()), with_kwargs=True
    )
    engine.generate(prompts_of(texts((9, 5, 7))), 3, 10_000, nothing)
    hook.remove()
    assert seen[0] == [9, 7, 5] and all(set(step) <= {9, 7, 5} for step in seen)


def library_of(model: Any, **settings: Any) -> LibraryEngine:
    return LibraryEngine(model, stepper_of(model, max_length=256, **settings), "cpu", TRIAL)


@pytest.mark.parametrize("name", ["t5", "bart", "marian"])
@pytest.mark.parametrize("settings", [
    {"num_beams": 3},
    {"num_beams": 4, "num_return_sequences": 2, "length_penalty": 0.5},
    {"num_beams": 2, "repetition_penalty": 1.4, "encoder_repetition_penalty": 1.2},
], ids=["beams", "several", "penalties"])  # fmt: skip
def test_beams_are_those_of_generate_alone(name: str, settings: dict[str, Any]) -> None:
    model = model_of(name)
    prompts = texts(LENGTHS)
    written = library_of(model, **settings).generate(prompts_of(prompts), 12, 10_000, nothing)
    assert outputs(written) == [output for p in prompts for output in alone(model, p, **settings)]


@pytest.mark.parametrize("settings", [
    {"num_beams": 3}, {"num_beams": 2, "no_repeat_ngram_size": 2, "repetition_penalty": 1.5},
], ids=["beams", "penalties"])  # fmt: skip
def test_beams_of_a_decoder_are_those_of_generate_alone(settings: dict[str, Any]) -> None:
    model = causal_model("llama", num_key_value_heads=2)
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = ENDS, 0
    prompts = texts((4, 9, 4, 30, 9))
    engine = library_of(model, **settings)
    assert engine.pads_safely == (len(settings) == 1)
    finished: list[int] = []
    written = engine.generate(prompts_of(prompts), 12, 10_000, lambda f, c: finished.append(f))
    assert outputs(written) == [alone(model, p, **settings)[0] for p in prompts] and sum(finished) == 5


def test_stop_strings_end_beams_as_in_transformers() -> None:
    from transformers import PreTrainedTokenizerFast

    model, tokenizer = tiny_llm("llama"), byte_level_tokenizer()
    model.generation_config.eos_token_id = None
    settings = {"num_beams": 2, "stop_strings": ["e", "t"], "max_new_tokens": 20, "do_sample": False}
    engine = LibraryEngine(model, Stepper(model, tokenizer, Decoding(settings), 128), "cpu", TOKENS)
    prompts = [p % 300 for p in texts((4, 9, 4))]
    written = outputs(engine.generate(prompts_of(prompts), 12, 10_000, nothing))
    named = PreTrainedTokenizerFast(tokenizer_object=tokenizer)
    for prompt, output in zip(prompts, written, strict=True):
        ids = torch.from_numpy(prompt.astype("int64"))[None]
        expected = model.generate(ids, attention_mask=torch.ones_like(ids), tokenizer=named, **settings)
        assert output == expected[0, len(prompt) :].tolist()


def test_guidance_runs_one_prompt_at_a_time() -> None:
    model = causal_model("llama", num_key_value_heads=2)
    settings = {"guidance_scale": 1.5}
    prompts = texts((4, 9, 4))
    engine = library_of(model, **settings)
    assert "guidance_scale" in engine.notes[-1]
    written = engine.generate(prompts_of(prompts), 12, 10_000, nothing)
    assert outputs(written) == [alone(model, p, **settings)[0] for p in prompts]


def test_sampling_with_beams_is_refused_with_the_reason() -> None:
    with pytest.raises(UsageError, match="depend on its neighbours"):
        library_of(model_of("bart"), num_beams=2, do_sample=True)
    with pytest.raises(UsageError, match="--logprobs"):
        library_of(model_of("bart"), num_beams=2, logprobs=True)


def test_what_transformers_refuses_is_a_usage_error() -> None:
    engine = library_of(model_of("bart"), num_beams=2, num_beam_groups=2, diversity_penalty=0.5)
    with pytest.raises(UsageError, match="refuses this"):
        engine.generate(prompts_of(texts((4,))), 4, 100, nothing)


def test_an_encoder_sees_rows_of_about_one_length_and_few_tokens_at_once() -> None:
    lengths = np.array([9, 400, 90, 310, 299, 8, 1])
    groups = length_groups(lengths)
    assert [lengths[group].tolist() for group in groups] == [[400, 310], [299], [90, 9, 8], [1]]
    assert [group.tolist() for group in length_groups(np.array([8, 1, 9]))] == [[2, 0, 1]]
    assert sorted(np.concatenate(groups).tolist()) == list(range(7))
