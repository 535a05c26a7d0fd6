"""vLLM itself against transformers, where PACKHORSE_VLLM_PYTHON is an interpreter that has it."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from packhorse.backends import vllm as backend
from packhorse.backends.vllm.interpreter import VARIABLE
from packhorse.backends.vllm.starting import OPTIONS
from packhorse.config import EngineConfig
from packhorse.generation import LENGTH, STOP
from tests.vllm_fake.asking import outputs_of, prompts_of, request_for

pytestmark = pytest.mark.skipif(not os.environ.get(VARIABLE), reason=f"{VARIABLE} names no interpreter with vllm")
SPECIALS = ("<pad>", "<unk>", "<s>", "</s>")
VOCAB, LONGEST = len(SPECIALS) + 256, 128
ENDS = (3, 9, 21)


def byte_tokenizer() -> Tokenizer:
    """A token a byte: what a grammar over texts allows can be told from them."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate([*SPECIALS, *alphabet])}, []))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    tokenizer.add_special_tokens(list(SPECIALS))
    return tokenizer


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights, wide enough that rows differ; some rows meet the end token."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("llama")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCAB, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=LONGEST, initializer_range=0.3, bos_token_id=2, eos_token_id=3,
        pad_token_id=0, tie_word_embeddings=False,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    PreTrainedTokenizerFast(
        tokenizer_object=byte_tokenizer(), pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(folder)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": ENDS, "pad_token_id": 0}))
    return folder


@pytest.fixture(autouse=True)
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compiling a small model takes longer than running it."""
    monkeypatch.setenv(OPTIONS, '{"enforce_eager": true}')


@pytest.fixture(scope="module")
def device() -> str:
    return backend.choose_device(EngineConfig(model="x"))


def prompts() -> list[list[int]]:
    random = np.random.default_rng(0)
    return [random.integers(5, VOCAB, size).tolist() for size in random.integers(1, 40, 24)]


def greedy(folder: Path, rows: list[list[int]], **settings: Any) -> list[list[int]]:
    """transformers' generate(), one row at a time."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    found = []
    for row in rows:
        ids = torch.tensor([row])
        output = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, **settings)
        found.append(output[0, len(row) :].tolist())
    return found


def test_greedy_is_transformers_greedy(llama: Path, device: str) -> None:
    settings = {"max_new_tokens": 24, "repetition_penalty": 1.3, "min_new_tokens": 2}
    request = replace(request_for(llama, settings, with_logprobs=True), device=device)
    model = backend.load(replace(request, description=replace(request.description, max_length=LONGEST)))
    rows = prompts()
    generated = model.generate(prompts_of([*rows, [5] * LONGEST]), 8, 1_000, lambda rows, tokens: None)
    model.close()
    wanted = greedy(llama, rows, **settings)
    assert outputs_of(generated)[:-1] == wanted
    assert generated.reasons.tolist()[:-1] == [STOP if row[-1] in ENDS else LENGTH for row in wanted]
    assert {STOP, LENGTH} <= set(generated.reasons.tolist()) and list(generated.errors) == [len(rows)]
    assert generated.logprobs is not None
    np.testing.assert_allclose(generated.logprobs, logprobs_of(llama, rows, wanted), atol=1e-3)


def logprobs_of(folder: Path, rows: list[list[int]], written: list[list[int]]) -> list[float]:
    """Of the model's own distribution, by one forward a row."""
    import torch
    from transformers import AutoModelForCausalLM

    model, found = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval(), []
    for row, output in zip(rows, written, strict=True):
        with torch.inference_mode():
            logits = model(torch.tensor([row + output])).logits[0].log_softmax(-1)
        found += [float(logits[len(row) - 1 + i, token]) for i, token in enumerate(output)]
    return found


def test_samples_and_choices(llama: Path, device: str) -> None:
    rows = prompts()[:6]
    sampled = {"max_new_tokens": 8, "do_sample": True, "temperature": 1.5, "num_return_sequences": 2}
    model = backend.load(replace(request_for(llama, sampled, seed=3), device=device))
    many = outputs_of(model.generate(prompts_of(rows), 12, 1_000, lambda rows, tokens: None))
    alone = outputs_of(model.generate(prompts_of([rows[4]], keys=[4]), 1, 1_000, lambda rows, tokens: None))
    model.close()
    assert many[8:10] == alone and len({tuple(output) for output in many}) > 6
    chosen = request_for(llama, {"max_new_tokens": 12}, choices=("good film", "bad film"))
    model = backend.load(replace(chosen, device=device))
    generated = model.generate(prompts_of(rows), 6, 1_000, lambda rows, tokens: None)
    model.close()
    tokenizer = byte_tokenizer()
    outputs = outputs_of(generated)
    assert {tokenizer.decode(output[:-1]) for output in outputs} <= {"good film", "bad film"}
    assert {output[-1] for output in outputs} <= set(ENDS) and generated.reasons.tolist() == [STOP] * 6
