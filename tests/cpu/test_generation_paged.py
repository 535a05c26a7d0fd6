"""transformers' continuous batching behind the engines' interface, also when its thread dies."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers.generation.continuous_batching.continuous_api import ContinuousBatchProcessor

from packhorse.backends.torch.generation.compat import missing_for_paging
from packhorse.backends.torch.generation.paged import PagedEngine, unfit
from packhorse.backends.torch.generation.stepping import Stepper
from packhorse.errors import UsageError
from packhorse.generation import Decoding
from tests.cpu.generating import ENDS, TRIAL, alone, nothing, outputs, prompts_of, stepper_of, texts
from tests.generators import byte_level_tokenizer, causal_model, seq2seq_model, tiny_llm

LENGTHS = (3, 40, 7, 1, 90, 12)
runs = pytest.mark.skipif(missing_for_paging() is not None, reason=str(missing_for_paging()))


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def model() -> Any:
    made = causal_model("llama", num_key_value_heads=2)
    made.generation_config.eos_token_id = ENDS
    return made


def engine_of(model: Any, **settings: Any) -> PagedEngine:
    return PagedEngine(model, stepper_of(model, **settings), "cpu", TRIAL)


@runs
def test_tokens_are_those_of_generate_alone(model: Any) -> None:
    prompts = texts(LENGTHS)
    finished: list[int] = []
    engine = engine_of(model)
    with torch.inference_mode():
        written = engine.generate(prompts_of(prompts), 4, 64, lambda f, c: finished.append(f))
    assert outputs(written) == [alone(model, p)[0] for p in prompts]
    assert sum(finished) == len(prompts) and not engine.notes


def dies_at(monkeypatch: pytest.MonkeyPatch, steps: list[int]) -> None:
    """The engine's thread raises at those of its steps, counted over all managers."""
    own, count = ContinuousBatchProcessor._generation_step, iter(range(10**6))

    def step(self: Any, model: Any) -> None:
        if next(count) in steps:
            raise RuntimeError("the pages are gone")
        own(self, model)

    monkeypatch.setattr(ContinuousBatchProcessor, "_generation_step", step)


@runs
def test_rows_that_a_dead_engine_lost_run_again(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    engine, prompts = engine_of(model), texts(LENGTHS)
    dies_at(monkeypatch, [12])
    written = engine.generate(prompts_of(prompts), 2, 64, nothing)
    assert outputs(written) == [alone(model, p)[0] for p in prompts] and not written.errors
    assert len(engine.notes) == 1 and "the pages are gone" in engine.notes[0]


@runs
def test_rows_lost_twice_are_written_in_static_batches(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    engine, prompts = engine_of(model), texts(LENGTHS)
    dies_at(monkeypatch, list(range(3, 1000)))
    written = engine.generate(prompts_of(prompts), 2, 64, nothing)
    assert outputs(written) == [alone(model, p)[0] for p in prompts] and not written.errors
    assert "static batches" in engine.notes[-1]


@runs
def test_rows_that_nothing_writes_are_error_rows(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    engine, prompts = engine_of(model), texts(LENGTHS)
    dies_at(monkeypatch, list(range(1000)))

    def fails(*args: Any) -> None:
        raise RuntimeError("no")

    monkeypatch.setattr("packhorse.backends.torch.generation.paged.StaticEngine", fails)
    written = engine.generate(prompts_of(prompts), 2, 64, nothing)
    assert sorted(written.errors) == list(range(6)) and {e.kind for e in written.errors.values()} == {"engine_failed"}
    assert written.lengths.tolist() == [0] * 6


@pytest.mark.parametrize(("settings", "said"), [
    ({"do_sample": True}, "noise"),
    ({"num_beams": 2}, "num_beams=2"),
    ({"repetition_penalty": 1.3}, "RepetitionPenaltyLogitsProcessor"),
    ({"min_new_tokens": 3}, "MinNewTokensLengthLogitsProcessor"),
    ({"logprobs": True}, "--logprobs"),
], ids=lambda v: next(iter(v)) if isinstance(v, dict) else "")  # fmt: skip
def test_what_it_cannot_do_is_refused_in_words(model: Any, settings: dict[str, Any], said: str) -> None:
    stepper = stepper_of(model, **settings)
    assert said in str(unfit(model, stepper))
    with pytest.raises(UsageError, match="--engine static"):
        PagedEngine(model, stepper, "cpu", TRIAL)


def test_stop_strings_are_refused() -> None:
    llama = tiny_llm("llama")
    stepper = Stepper(llama, byte_level_tokenizer(), Decoding({"stop_strings": ["e"], "do_sample": False}), 128)
    assert "stop_strings" in str(unfit(llama, stepper))


def test_models_that_it_cannot_run_are_refused() -> None:
    bart = seq2seq_model("bart")
    assert "encoder-decoder" in str(unfit(bart, stepper_of(bart)))
    mamba = causal_model("mamba", state_size=8)
    with pytest.raises(UsageError, match="--engine paged"):
        engine_of(mamba)
