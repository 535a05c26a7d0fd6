"""Log-likelihoods against loops over rows, windows and masked tokens with plain transformers models in fp32."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    XLNetConfig,
    XLNetLMHeadModel,
)

import packhorse
from packhorse.backends.torch.weights import pad_id
from packhorse.errors import ModelError, UsageError
from tests.cpu.command import forked
from tests.models import save_tokenizer

MAX_LENGTH = 32
TEXTS = [
    "the film was good", "a", "", "   ", "你好 résumé 🙂", "it is not bad " * 2, "שלום é", "the film was good",
    "two hours go by " * 20,
]  # fmt: skip
TEXTS_AND_NULL = [*TEXTS[:3], None, *TEXTS[3:]]


def byte_tokenizer(has_bos: bool) -> PreTrainedTokenizerFast:
    """Byte-level BPE; with <s> before a text and </s> behind it, or with neither, as GPT-2's."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=["<s>", "</s>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )  # fmt: skip
    made.train_from_iterator(["the film was a very good film and it is not bad", "two hours go by in no time"], trainer)
    made.post_processor = (
        processors.TemplateProcessing(
            single="<s> $A </s>", pair="<s> $A <s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
        )
        if has_bos
        else processors.ByteLevel(trim_offsets=True)
    )
    names = {"bos_token": "<s>"} if has_bos else {}
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="</s>", model_max_length=MAX_LENGTH, **names)


def save_causal(folder: Path, kind: str) -> Path:
    torch.manual_seed(0)
    ends = {"vocab_size": 400, "bos_token_id": 0, "eos_token_id": 1, "initializer_range": 0.2}
    model: Any
    if kind == "gpt2":
        model = GPT2LMHeadModel(GPT2Config(n_positions=MAX_LENGTH, n_embd=64, n_layer=2, n_head=4, **ends))
    else:
        sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
        model = LlamaForCausalLM(
            LlamaConfig(**sizes, num_key_value_heads=2, max_position_embeddings=MAX_LENGTH, **ends)
        )
    model.save_pretrained(folder)
    byte_tokenizer(has_bos=kind == "llama").save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def causal(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("causal")
    return {kind: save_causal(root / kind, kind) for kind in ("gpt2", "llama")}


@pytest.fixture(scope="module")
def masked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("masked")
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128}
    BertForMaskedLM(
        BertConfig(**sizes, vocab_size=130, max_position_embeddings=MAX_LENGTH, initializer_range=0.3)
    ).save_pretrained(folder)
    save_tokenizer(folder, MAX_LENGTH)
    return folder


def next_tokens(model: Any, ids: list[int]) -> np.ndarray:
    """[len(ids)] natural logarithms; 0 for the first, which nothing comes before."""
    with torch.no_grad():
        scores = model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
    return np.array([0.0, *(float(scores[i, ids[i + 1]]) for i in range(len(ids) - 1))])


def wrapped(ids: list[int], has_bos: bool) -> list[int]:
    return [0, *ids, 1] if has_bos else ids


def check(row: dict[str, Any], ids: list[int], scores: np.ndarray) -> None:
    """Against what was scored and how."""
    assert (row["token_ids"], row["num_tokens"], row["error"]) == (ids, len(ids), None)
    np.testing.assert_allclose(row["token_logprobs"], scores, rtol=1e-4, atol=1e-4)
    assert row["log_likelihood"] == pytest.approx(float(np.sum(scores)), rel=1e-4)
    if ids:
        assert row["perplexity"] == pytest.approx(float(np.exp(-np.mean(scores))), rel=1e-3)
    else:
        assert row["perplexity"] is None


@pytest.mark.parametrize("attention", ["auto", "sdpa"])
@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_each_token_under_those_before_it(causal: dict[str, Path], kind: str, attention: str) -> None:
    """BOS is context and EOS is not scored; without BOS the first token has no score. Texts that are cut keep both."""
    folder, has_bos = causal[kind], kind == "llama"
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    with packhorse.load(folder, task="perplexity", logprobs=True, attention=attention) as engine:
        rows = engine.predict(TEXTS_AND_NULL).to_pylist()
        assert engine.plan.attention == ("packed" if attention == "auto" else "sdpa")
    for text, row in zip(TEXTS_AND_NULL, rows, strict=True):
        if text is None:
            assert row["error"]["kind"] == "null_text" and row["log_likelihood"] is None
            continue
        own = tokenizer(text, add_special_tokens=False)["input_ids"][: MAX_LENGTH - 2 * has_bos]
        first = 0 if has_bos else 1
        ids = wrapped(own, has_bos)
        check(row, own[first:], next_tokens(model, ids)[1 : len(own) - first + 1] if own else np.empty(0))


@pytest.mark.parametrize("stride", [None, 1, 13])
@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_windows_score_each_token_once(causal: dict[str, Path], kind: str, stride: int | None) -> None:
    """As the sliding window of the Hugging Face guide to perplexity: what two windows share is context alone."""
    folder, has_bos = causal[kind], kind == "llama"
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    with packhorse.load(folder, task="perplexity", logprobs=True, long="windows", stride=stride) as engine:
        rows = engine.predict(TEXTS).to_pylist()
    room, shared = MAX_LENGTH - 2 * has_bos, MAX_LENGTH // 2 if stride is None else stride
    for text, row in zip(TEXTS, rows, strict=True):
        own = tokenizer(text, add_special_tokens=False)["input_ids"]
        scored, values, begin = [], [], 0
        while own:
            window = own[begin : begin + room]
            scores = next_tokens(model, wrapped(window, has_bos))[has_bos : has_bos + len(window)]
            new = (0 if has_bos else 1) if begin == 0 else shared
            scored += window[new:]
            values += scores[new:].tolist()
            if begin + room >= len(own):
                break
            begin += room - shared
        assert scored == own[0 if has_bos else 1 :]
        check(row, scored, np.array(values))


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_pairs_score_the_second_text_under_the_first(causal: dict[str, Path], kind: str) -> None:
    """Both are tokenized as one text, which loses its beginning where it is too long."""
    folder, has_bos = causal[kind], kind == "llama"
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    firsts = ["the film was", "", "two hours go by " * 20, "é 🙂", "it is", "it is", None]
    seconds = [" good", "a film", " in no time", " 你好", "", " not bad", " x"]
    with packhorse.load(folder, task="perplexity", logprobs=True) as engine:
        rows = engine.predict(firsts, seconds).to_pylist()
    assert rows.pop()["error"]["kind"] == "null_text"
    for first, second, row in zip(firsts, seconds, rows, strict=False):
        before = len(tokenizer(first, add_special_tokens=False)["input_ids"])
        own = tokenizer(f"{first}{second}", add_special_tokens=False)["input_ids"]
        cut = max(len(own) - (MAX_LENGTH - 2 * has_bos), 0)
        own, before = own[cut:], max(before - cut, 0 if has_bos else 1)
        scores = next_tokens(model, wrapped(own, has_bos))[has_bos : has_bos + len(own)]
        check(row, own[before:], scores[before:])


def pseudo(model: Any, ids: list[int], mask_id: int, place: int) -> float:
    hidden = torch.tensor([ids])
    hidden[0, place] = mask_id
    with torch.no_grad():
        return float(model(hidden).logits[0, place].double().log_softmax(-1)[ids[place]])


@pytest.mark.parametrize("attention", ["auto", "sdpa"])
def test_masked_models_mask_each_token_in_turn(masked: Path, attention: str) -> None:
    model, tokenizer = AutoModelForMaskedLM.from_pretrained(masked).eval(), AutoTokenizer.from_pretrained(masked)
    texts = ["the film was good", "", "   ", "a [MASK] film", "你好 é", "the film was good", "two hours go by " * 3]
    with packhorse.load(masked, task="perplexity", logprobs=True, attention=attention) as engine:
        rows = engine.predict(texts).to_pylist()
        assert engine.plan.attention == ("packed" if attention == "auto" else "sdpa")
    for text, row in zip(texts, rows, strict=True):
        ids = tokenizer(text, truncation=True, max_length=MAX_LENGTH)["input_ids"]
        check(row, ids[1:-1], np.array([pseudo(model, ids, 4, i) for i in range(1, len(ids) - 1)]))


@pytest.mark.parametrize("stride", [None, 0, 7])
def test_masked_windows_mask_each_token_once(masked: Path, stride: int | None) -> None:
    """Tokens that two windows share: the first half in the one before, the second in the one behind."""
    model, tokenizer = AutoModelForMaskedLM.from_pretrained(masked).eval(), AutoTokenizer.from_pretrained(masked)
    text = "the plot of the old film is very sad and not well made but short " * 4
    own = tokenizer(text, add_special_tokens=False)["input_ids"]
    with packhorse.load(masked, task="perplexity", logprobs=True, long="windows", stride=stride) as engine:
        row = engine.predict([text]).to_pylist()[0]
    shared, room = MAX_LENGTH // 2 if stride is None else stride, MAX_LENGTH - 2
    scores, begin = np.full(len(own), np.nan), 0
    while True:
        window = own[begin : begin + room]
        is_last = begin + room >= len(own)
        first = shared // 2 if begin else 0
        for i in range(first, len(window) if is_last else len(window) - (shared - shared // 2)):
            assert np.isnan(scores[begin + i])
            scores[begin + i] = pseudo(model, [2, *window, 3], 4, i + 1)
        if is_last:
            break
        begin += room - shared
    check(row, own, scores)


def test_masked_pairs_mask_the_second_text(masked: Path) -> None:
    model, tokenizer = AutoModelForMaskedLM.from_pretrained(masked).eval(), AutoTokenizer.from_pretrained(masked)
    with packhorse.load(masked, task="perplexity", logprobs=True) as engine:
        row = engine.predict(["the film was"], ["very good"]).to_pylist()[0]
    inputs = tokenizer("the film was", "very good", return_tensors="pt")
    expected = []
    for place in range(5, 7):
        ids = inputs["input_ids"].clone()
        ids[0, place] = 4
        with torch.no_grad():
            logits = model(**{**inputs, "input_ids": ids}).logits
        expected.append(float(logits[0, place].double().log_softmax(-1)[inputs["input_ids"][0, place]]))
    check(row, inputs["input_ids"][0, 5:7].tolist(), np.array(expected))


def test_runs_from_files(causal: dict[str, Path], masked: Path, tmp_path: Path) -> None:
    """JSON lines by the command and Parquet from Python, against predict; the report counts what was cut."""
    lines = tmp_path / "in.jsonl"
    lines.write_text("".join(json.dumps({"text": text, "n": i}) + "\n" for i, text in enumerate(TEXTS_AND_NULL)))
    with packhorse.load(causal["gpt2"], task="perplexity") as engine:
        expected = engine.predict(TEXTS_AND_NULL)
    arguments = ["run", str(causal["gpt2"]), str(lines), "-o", str(tmp_path / "out.jsonl"), "--task", "perplexity"]
    done = forked(*arguments)
    assert done.returncode == 0, done.stderr
    tokenizer = AutoTokenizer.from_pretrained(causal["gpt2"])
    lost = [max(len(tokenizer(text)["input_ids"]) - MAX_LENGTH, 0) for text in TEXTS]
    assert f"1 rows cut, {sum(lost):,} tokens lost" in done.stdout, done.stdout
    made = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    for name in ("log_likelihood", "num_tokens", "perplexity"):
        written = np.array([row[name] for row in made], np.float64)
        np.testing.assert_allclose(written, np.array(expected[name].to_pylist(), np.float64), rtol=1e-4)

    pairs = pa.table({"text": ["the film was"] * 300, "second": ["good", "bad", "a cat"] * 100})
    pq.write_table(pairs, tmp_path / "in.parquet")
    settings: dict[str, Any] = {"task": "perplexity", "long": "windows"}
    report = packhorse.run(masked, tmp_path / "in.parquet", tmp_path / "out.parquet", pair_column="second", **settings)
    with packhorse.load(masked, **settings) as engine:
        expected = engine.predict(["the film was"] * 3, ["good", "bad", "a cat"])
    table = pq.read_table(tmp_path / "out.parquet")
    np.testing.assert_allclose(table["log_likelihood"], expected["log_likelihood"].to_pylist() * 100, rtol=1e-4)
    assert report.rows == 300


def test_models_that_see_what_comes_next_are_refused(tmp_path: Path) -> None:
    torch.manual_seed(0)
    XLNetLMHeadModel(
        XLNetConfig(vocab_size=400, d_model=32, n_layer=2, n_head=4, d_inner=64, initializer_range=0.3)
    ).save_pretrained(tmp_path)
    byte_tokenizer(has_bos=False).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="see those behind them"):
        packhorse.load(tmp_path, task="perplexity")


def test_what_does_not_fit_is_said(causal: dict[str, Path], bert: Path) -> None:
    with pytest.raises(UsageError, match="--stride 0"):
        packhorse.load(causal["gpt2"], task="perplexity", long="windows", stride=0)
    with pytest.raises(UsageError, match="ForMaskedLM"):
        packhorse.load(bert, task="perplexity")
    with packhorse.load(causal["gpt2"], task="perplexity", long="error") as engine:
        errors = engine.predict(TEXTS)["error"].to_pylist()
    assert [e and e["kind"] for e in errors] == [None] * 8 + ["text_too_long"]


def test_padding_of_a_model_without_a_token_for_it_stays_one_that_it_has(causal: dict[str, Path]) -> None:
    """Each layout asks for it, and the first answer is written into the config."""
    config = AutoModelForCausalLM.from_pretrained(causal["gpt2"]).config
    assert [pad_id(config), pad_id(config)] == [0, 0]
