"""The forward in OpenVINO, against transformers' own generate() one prompt at a time and the continuous engine."""

from __future__ import annotations

import copy
import importlib.util
import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

import packhorse
from packhorse.backends.torch.generation import openvino_fitting
from packhorse.backends.torch.generation.continuous import ContinuousEngine
from packhorse.backends.torch.generation.openvino_engine import OpenVINOEngine
from packhorse.backends.torch.generation.openvino_graph import graph_of
from packhorse.backends.torch.generation.openvino_model import OpenVINOModel
from packhorse.backends.torch.generation.paged_batch import PagedBatch
from packhorse.backends.torch.generation.stepping import Stepper
from packhorse.data import Int32s
from packhorse.errors import InterruptedRunError, UsageError
from packhorse.executors.local import Stop
from packhorse.generation import Decoding, Generated
from packhorse.packing.prepack import prepack
from tests.cpu.causal_models import HEADS, model_of, prompts_of, texts
from tests.cpu.engine import load
from tests.generators import VOCAB, causal_model
from tests.models import word_piece_tokenizer
from tests.null.runs import AfterLooks, parts
from tests.writers_of_text import save_writer
from tests.writers_of_text import texts as texts_of

needs_openvino = pytest.mark.skipif(importlib.util.find_spec("openvino") is None, reason="openvino is not installed")
ENDS = list(range(3, VOCAB, 20))  # one token in twenty ends an output
TRIAL = prompts_of(texts((8, 8, 6), seed=7)).tokens
GREEDY = {"do_sample": False, "max_new_tokens": 30, "eos_token_id": ENDS}
WRITERS = ("llama-gqa", "qwen3", "gpt2", "mistral-window", "gemma3-windows", "deepseek-wide-keys")  # of MODELS
SAMPLED = {"do_sample": True, "max_new_tokens": 12, "num_return_sequences": 3, "top_p": 0.9}


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def stepper_of(model: Any, settings: Mapping[str, Any], logprobs: bool = False) -> Stepper:
    return Stepper(model, word_piece_tokenizer(), Decoding(dict(settings), seed=3, with_logprobs=logprobs), 512)


def engine_of(model: Any, settings: Mapping[str, Any] = GREEDY, logprobs: bool = False) -> OpenVINOEngine:
    return OpenVINOEngine(model, stepper_of(model, settings, logprobs), 1, TRIAL)


def run(engine: Any, ids: Sequence[Int32s], max_rows: int, max_tokens: int = 1_024) -> Generated:
    made: Generated = engine.generate(prompts_of(ids), max_rows, max_tokens, lambda rows, tokens: None)
    return made


def outputs(generated: Generated) -> list[list[int]]:
    return [generated.ids[a:b].tolist() for a, b in itertools.pairwise(generated.offsets)]


def alone(model: Any, prompt: Int32s, settings: Mapping[str, Any]) -> list[int]:
    """What generate() writes after the prompt."""
    row = torch.from_numpy(prompt.astype(np.int64))[None]
    out = model.generate(row, attention_mask=torch.ones_like(row), pad_token_id=0, **settings)
    written: list[int] = out[0, len(prompt) :].tolist()
    return written


# -- tokens


@needs_openvino
@pytest.mark.parametrize("name", WRITERS)
def test_greedy_tokens_are_those_of_generate_one_prompt_at_a_time(name: str) -> None:
    model, ids = model_of(name), texts()
    expected = [alone(model, prompt, GREEDY) for prompt in ids]
    assert len({len(output) for output in expected}) > 2, "outputs of one length show no batching"
    engine = engine_of(model)
    for max_rows, max_tokens in ((1, 1_024), (3, 50), (64, 8_192), (4, 24)):
        assert outputs(run(engine, ids, max_rows, max_tokens)) == expected
    assert outputs(run(engine, ids[::-1], 4)) == expected[::-1]


@needs_openvino
def test_layers_of_onednn_are_converted_with_what_they_compute_on_the_way() -> None:
    """In them lies an activation, and a weight in an order that only oneDNN reads."""
    model, ids = causal_model("gpt2", activation_function="gelu"), texts((5, 9, 40))
    expected = [alone(model, prompt, GREEDY) for prompt in ids]
    prepack(model, lambda: model(input_ids=torch.ones(1, 4, dtype=torch.long)))
    packed = [type(module).__name__ for module in model.modules()]
    assert "PrepackedLinear" in packed
    assert outputs(run(engine_of(model), ids, 3)) == expected
    assert [type(module).__name__ for module in model.modules()] == packed


@needs_openvino
def test_samples_and_their_probabilities_are_those_of_the_continuous_engine() -> None:
    """Behind a beginning that all prompts have, which ends within a block, three samples of each."""
    head = texts((43,), seed=1)[0]
    ids = [np.concatenate([head, text]) for text in texts((1, 5, 30), seed=2)]
    model = model_of("llama-gqa")
    ours = engine_of(model, SAMPLED, logprobs=True)
    theirs = ContinuousEngine(model, stepper_of(model, SAMPLED, logprobs=True), "cpu")
    for max_rows, max_tokens in ((4, 16), (9, 1_024)):
        ov, packed = (run(engine, ids, max_rows, max_tokens) for engine in (ours, theirs))
        assert not packed.near_ties.any(), "other prompts are needed: a near tie may be broken otherwise"
        assert len({tuple(output) for output in outputs(packed)}) > 3
        assert outputs(ov) == outputs(packed)
        assert ov.logprobs is not None and packed.logprobs is not None
        np.testing.assert_allclose(ov.logprobs, packed.logprobs, atol=1e-4)


@needs_openvino
def test_the_same_job_has_the_same_bytes_again() -> None:
    """In an engine that wrote something else meanwhile, and in another one."""
    model, ids = model_of("qwen3"), texts()
    first = engine_of(model, logprobs=True)
    made = run(first, ids, 4, 64)
    run(first, texts(seed=5), 3)
    for again in (run(first, ids, 4, 64), run(engine_of(model, logprobs=True), ids, 4, 64)):
        assert made.logprobs is not None and again.logprobs is not None
        assert again.ids.tobytes() == made.ids.tobytes() and again.logprobs.tobytes() == made.logprobs.tobytes()


@needs_openvino
def test_a_row_that_went_wrong_leaves_nothing_behind_for_others() -> None:
    """Its keys are NaN, and its blocks are taken by rows that come after it."""
    model, ids = causal_model("llama", tie_word_embeddings=False), texts((40, 40, 40, 40, 40))
    sick = int(np.setdiff1d(np.arange(2, VOCAB), np.concatenate([*ids, TRIAL.ids]))[0])
    expected = [alone(model, prompt, GREEDY) for prompt in ids]
    assert not any(sick in output for output in expected)
    with torch.no_grad():
        model.get_input_embeddings().weight[sick] = torch.nan
    engine = engine_of(model)
    made = run(engine, [np.full(40, sick, np.int32), *ids], 2)
    assert {row: error.kind for row, error in made.errors.items()} == {0: "not_finite"}
    assert outputs(made)[1:] == expected


def halved(model: Any) -> Any:
    """In bf16 as from_pretrained() loads it: what is no parameter, the frequencies of positions, stays in float32."""
    for parameter in model.parameters():
        parameter.data = parameter.data.to(torch.bfloat16)
    return model


@needs_openvino
def test_in_half_precision_a_far_position_is_as_exact_as_a_near_one() -> None:
    """bf16 has 8 bits: computed in it, positions 257 and 256 are one, and the logits differ by 0.8 and more."""
    model, ids = halved(causal_model("llama")), texts((500, 300, 20, 10))
    batch: PagedBatch[Any] = PagedBatch(OpenVINOModel(graph_of(model), "bf16", 1))
    with torch.inference_mode():
        expected = [model(input_ids=torch.from_numpy(i.astype(np.int64))[None]).logits[0, -1].float() for i in ids]
    logits, _ = batch.prefill(ids)
    for row, plain in zip(logits, expected, strict=True):
        assert float((row - plain).std() / plain.std()) < 0.06


@needs_openvino
@pytest.mark.parametrize("name", ["llama-gqa", "qwen3", "gpt2"])
def test_half_precision_is_taken_too(name: str) -> None:
    made = run(engine_of(halved(copy.deepcopy(model_of(name)))), texts(), 4, 64)
    assert not made.errors and len(made.ids) > 10


@needs_openvino
def test_a_model_that_is_wrong_at_far_positions_alone_is_refused() -> None:
    model = causal_model("llama")
    rotate = model.model.rotary_emb.forward

    def traced_otherwise(x: torch.Tensor, position_ids: torch.Tensor) -> Any:
        """In a trace, angles repeat after 256 positions."""
        return rotate(x, position_ids % 256 if torch.jit.is_tracing() else position_ids)

    model.model.rotary_emb.forward = traced_otherwise
    with pytest.raises(UsageError, match="--engine openvino: converted, at 512 tokens, logits differ"):
        engine_of(model)


# -- what is refused


@needs_openvino
def test_a_model_whose_converted_graph_has_other_logits_is_refused() -> None:
    model = causal_model("llama")
    forward = model.model.layers[1].mlp.forward

    def counts(x: torch.Tensor) -> torch.Tensor:
        """What a trace makes a constant of: the number of tokens of its example."""
        return forward(x) * (1.0 + int(x.shape[1]) / 10)  # type: ignore[no-any-return]

    model.model.layers[1].mlp.forward = counts
    with pytest.raises(UsageError, match=r"--engine openvino: converted, .*logits differ.*--engine auto"):
        engine_of(model)


@needs_openvino
@pytest.mark.parametrize(("kind", "config", "why"), [("gemma2", HEADS, "softcap"), ("bloom", {}, "bloom|Bloom")])
def test_what_cannot_be_converted_is_refused_in_words(kind: str, config: dict[str, Any], why: str) -> None:
    with pytest.raises(UsageError, match=f"--engine openvino cannot take this model: .*(?:{why}).*--engine auto"):
        engine_of(causal_model(kind, **config))


def test_what_is_known_before_a_conversion(monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of("llama")
    assert "cuda:0" in (openvino_fitting.unfit(model, "cuda:0", 1) or "")
    assert "float16" in (openvino_fitting.unfit(causal_model("llama").half(), "cpu", 1) or "")
    monkeypatch.setattr(openvino_fitting, "find_spec", lambda name: object())
    assert openvino_fitting.unfit(model, "cpu", 1) is None
    assert "GiB are free" in (openvino_fitting.unfit(model, "cpu", 2**50) or "")
    monkeypatch.setattr(openvino_fitting, "find_spec", lambda name: None)
    assert "pip install 'packhorse[openvino]'" in (openvino_fitting.unfit(model, "cpu", 1) or "")


def test_asked_for_where_it_is_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(openvino_fitting, "find_spec", lambda name: None)
    with (
        pytest.raises(UsageError, match=r"--engine openvino: openvino is not installed.*--engine auto"),
        load(save_writer(tmp_path, "llama"), engine="openvino", max_new_tokens=4) as loaded,
    ):
        loaded.predict(["a film"])


# -- jobs


@pytest.mark.slow
@needs_openvino
def test_a_stopped_job_goes_on_to_the_same_bytes_and_its_plan_says_how(tmp_path: Path) -> None:
    folder, rows = save_writer(tmp_path / "llama", "llama"), pa.table({"text": texts_of(9)})
    asked = {
        "devices": "cpu", "precision": "fp32", "max_new_tokens": 8, "shard_rows": 4, "batch_size": 3, "do_sample": True,
        "seed": 5, "logprobs": True,
    }  # fmt: skip

    def run_to(name: str, **job: Any) -> dict[str, bytes]:
        packhorse.run(folder, rows, tmp_path / name, engine="openvino", **asked, **job)
        return parts(tmp_path / name)

    whole = run_to("whole")
    with pytest.raises(InterruptedRunError):
        run_to("stopped", stop=Stop(AfterLooks(9), signum=15))
    assert run_to("stopped") == whole
    plan = json.loads((tmp_path / "whole" / "_packhorse" / "manifest.json").read_text())["plan"]
    assert (plan["engine"], plan["batching"], plan["attention"]) == ("openvino", "packed", "packed")
    assert plan["versions"]["openvino"]
