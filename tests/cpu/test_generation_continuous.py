"""Continuous batching against transformers' own generate() and forward, one prompt at a time."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

from packhorse.backends.torch.generation.continuous import ContinuousEngine
from packhorse.backends.torch.generation.stepping import Stepper
from packhorse.data import Int32s
from packhorse.errors import DeviceOutOfMemoryError, UsageError
from packhorse.generation import FINISH_REASONS, Decoding, Generated
from tests.cpu.causal_models import MODELS, model_of, prompts_of, texts
from tests.generators import VOCAB, causal_model
from tests.models import word_piece_tokenizer

ENDS = list(range(3, VOCAB, 20))  # one token in twenty ends an output: outputs of very different lengths
MAX_NEW_TOKENS = 30


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


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
