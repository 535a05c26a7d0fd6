"""fill-mask against transformers' own pipeline, one text at a time in fp32."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import transformers
from transformers import AutoConfig, AutoModelForMaskedLM, pipeline

import packhorse
from packhorse.errors import UsageError
from tests.cpu.command import forked
from tests.models import WORDS, save_tokenizer

MAX_LENGTH = 40
VOCAB = 130
SIZES = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128}
NAMES = {"vocab_size": VOCAB, "pad_token_id": 0, "max_position_embeddings": MAX_LENGTH, "initializer_range": 0.3}
BERT = {**SIZES, **NAMES}
KINDS: dict[str, dict[str, Any]] = {
    "bert": BERT,
    "roberta": {**BERT, "type_vocab_size": 1, "max_position_embeddings": MAX_LENGTH + 1},
    "distilbert": {**NAMES, "dim": 64, "n_layers": 2, "n_heads": 4, "hidden_dim": 128},
    "albert": {**BERT, "embedding_size": 32},
    "electra": {**BERT, "embedding_size": 32},
    "modernbert": {
        **SIZES, **NAMES, "initializer_range": 0.1, "global_attn_every_n_layers": 2, "local_attention": 16,
        "cls_token_id": 2, "sep_token_id": 3, "bos_token_id": 2, "eos_token_id": 3,
    },
    "deberta-v2": {**BERT, "relative_attention": True, "pos_att_type": ["p2c", "c2p"], "type_vocab_size": 0},
    "deberta-v2-lm": {**BERT, "relative_attention": True, "type_vocab_size": 0, "legacy": False},
    "mpnet": {**BERT, "max_position_embeddings": MAX_LENGTH + 2, "pad_token_id": 1},
}  # fmt: skip
TEXTS = [
    "the film was very [MASK].", "[MASK]", "a [MASK] film with a [MASK] plot", "[MASK] [MASK] [MASK]", "你 [MASK] 🙂 é",
    "שלום [MASK]", "the plot is [MASK] [PAD] and long", "[MASK] [PAD] [MASK] [CLS]", "the film was very [MASK].",
    "two hours go by in [MASK] time " + "zip " * 20,
]  # fmt: skip


def save_masked(folder: Path, kind: str) -> Path:
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind.removesuffix("-lm"), **KINDS[kind])
    AutoModelForMaskedLM.from_config(config).save_pretrained(folder)
    types = ("token_type_ids",) if kind in ("bert", "albert", "electra") else ()
    save_tokenizer(folder, MAX_LENGTH, inputs=("input_ids", *types, "attention_mask"))
    return folder


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_masked(tmp_path_factory.mktemp("bert"), "bert")


def check(predictions: list[list[dict[str, Any]]], expected: list[Any]) -> None:
    """The pipeline gives the list of a text's only mask itself."""
    by_mask = [expected] if isinstance(expected[0], dict) else expected
    assert len(predictions) == len(by_mask)
    for made, wanted in zip(predictions, by_mask, strict=True):
        assert [list(candidate) for candidate in made] == [list(candidate) for candidate in wanted]
        for name in ("token", "token_str", "sequence"):
            assert [candidate[name] for candidate in made] == [candidate[name] for candidate in wanted]
        assert [c["score"] for c in made] == pytest.approx([c["score"] for c in wanted], abs=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_equals_the_pipeline(tmp_path: Path, kind: str) -> None:
    if kind == "deberta-v2-lm" and transformers.__version__.startswith("5.3."):
        pytest.skip("transformers 5.3 cannot load this head itself: it looks for a weight that the head does not have")
    folder = save_masked(tmp_path, kind)
    filler = pipeline("fill-mask", model=str(folder))
    with packhorse.load(folder, task="fill-mask") as engine:
        predictions = engine.predict(TEXTS)["predictions"].to_pylist()
        assert not [note for note in engine.plan.notes if "logits of all tokens" in note]
    for text, made in zip(TEXTS, predictions, strict=True):
        check(made, filler(text))


@pytest.mark.parametrize("settings", [{"attention": "sdpa"}, {"batching": "padded"}, {"top_k": 1}, {"top_k": 99}])
def test_in_other_layouts_and_numbers(bert: Path, settings: dict[str, Any]) -> None:
    filler = pipeline("fill-mask", model=str(bert))
    with packhorse.load(bert, **settings) as engine:
        rows = engine.predict(TEXTS)["predictions"].to_pylist()
    for text, made in zip(TEXTS, rows, strict=True):
        check(made, filler(text, top_k=settings.get("top_k", 5)))


def test_targets(bert: Path) -> None:
    """Twice the same word counts once, "[MASK]" is a word, and one that is no token is its first token."""
    words = ["good", "bad", "funnybone", "good", "[MASK]", "Great"]
    filler = pipeline("fill-mask", model=str(bert))
    for top_k in (None, 2):
        with packhorse.load(bert, targets=words, top_k=top_k) as engine:
            rows = engine.predict(TEXTS)["predictions"].to_pylist()
            notes = [note for note in engine.plan.notes if "--targets" in note]
        assert notes == [
            "--targets: the vocabulary has no 'funnybone'; 'funny' stands for it",
            "--targets: the vocabulary has no 'Great'; 'great' stands for it",
        ]
        for text, made in zip(TEXTS, rows, strict=True):
            check(made, filler(text, targets=words, top_k=top_k or 5))


def test_a_head_that_reads_more_than_a_token_runs_in_the_whole_forward(bert: Path, monkeypatch: Any) -> None:
    """One that takes the mean over all tokens away is another on single tokens; values stay those of the model."""
    from transformers.models.bert.modeling_bert import BertOnlyMLMHead

    plain = BertOnlyMLMHead.forward
    monkeypatch.setattr(
        BertOnlyMLMHead, "forward", lambda head, hidden: plain(head, hidden - hidden.mean(1, keepdim=True))
    )
    texts = [TEXTS[0], TEXTS[2], "the [MASK] is bad"]
    filler = pipeline("fill-mask", model=str(bert))
    with packhorse.load(bert) as engine:
        rows = engine.predict(texts)["predictions"].to_pylist()
        assert any("logits of all tokens are made: the head of BertForMaskedLM" in note for note in engine.plan.notes)
        assert engine.plan.attention != "packed"
    for text, made in zip(texts, rows, strict=True):
        check(made, filler(text))


def test_rows_without_a_mask_are_in_error(bert: Path) -> None:
    texts = ["no mask", "", "zip " * 60 + "[MASK]", None, "a [MASK]"]
    with packhorse.load(bert) as engine:
        table = engine.predict(texts)
    errors = table["error"].to_pylist()
    assert [e and e["kind"] for e in errors] == ["no_mask_token"] * 3 + ["null_text", None]
    assert "too long" in errors[2]["message"] and "too long" not in errors[0]["message"]
    assert [p is None for p in table["predictions"].to_pylist()] == [True] * 4 + [False]
    with packhorse.load(bert) as engine:
        assert engine.predict(["no mask"])["predictions"].to_pylist() == [None]


def test_runs_from_files(bert: Path, tmp_path: Path) -> None:
    filler = pipeline("fill-mask", model=str(bert))
    lines = tmp_path / "in.jsonl"
    lines.write_text("".join(json.dumps({"text": text}) + "\n" for text in [*TEXTS, "none"]))
    done = forked("run", bert, lines, "-o", tmp_path / "out.jsonl", "--targets", "good,bad", "--top-k", "1")
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert rows.pop()["error"]["kind"] == "no_mask_token"
    for text, row in zip(TEXTS, rows, strict=True):
        check(row["predictions"], filler(text, targets=["good", "bad"], top_k=1))

    texts = [f"the {word} was [MASK]" for word in WORDS for _ in range(20)]
    pq.write_table(pa.table({"text": texts}), tmp_path / "in.parquet")
    packhorse.run(bert, tmp_path / "in.parquet", tmp_path / "out.parquet")
    predictions = pq.read_table(tmp_path / "out.parquet")["predictions"].to_pylist()
    for i in range(0, len(texts), 97):
        check(predictions[i], filler(texts[i]))


def test_what_does_not_fit_is_said(bert: Path) -> None:
    with pytest.raises(UsageError, match="--top-k 131: the vocabulary has"):
        packhorse.load(bert, top_k=131)
    with pytest.raises(UsageError, match="--targets  : the tokenizer makes no token"):
        packhorse.load(bert, targets=[" "])
    with pytest.raises(UsageError, match="--long windows"):
        packhorse.load(bert, long="windows")


def test_cost_counts_the_head_once_a_row(bert: Path) -> None:
    """2 FLOPs a weight: 4 x 64 x 64 + 2 x 64 x 128 a layer and token; 64 x 64 + 64 x vocabulary a mask."""
    with packhorse.load(bert) as engine:
        cost = engine._loader.model("fp32").cost
    assert cost.per_token == 2 * 2 * (4 * 64 * 64 + 2 * 64 * 128)
    assert cost.per_row == 2 * (64 * 64 + 64 * VOCAB)
