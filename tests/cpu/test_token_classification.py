"""token-classification against transformers' own pipeline, and the same rows through files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import packhorse
from packhorse.errors import UsageError
from tests.cpu.command import forked
from tests.models import word_piece_tokenizer

LABELS = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC", "ORG", "MISC-X"]
HOWS = ("none", "simple", "first", "average", "max")
TEXTS = [
    "a good film, well made in 1999!", "short", "你好 world 🙂 dog", "re\u0301sume\u0301 of the café",
    "مرحبا שלום the cat",
    "zip\tfile\nbad  row", "it's a don't-care", "\u200bzero\u00a0width", "the plot is very very long " * 12, "", "  ",
]  # fmt: skip
WORDS = [["a", "good", "film,"], ["unaffable", "你好", "dog's"], [], ["", "the cat", "🙂"], ["boring"] * 40]
MAX_LENGTH = 64


def _save(folder: Path, kind: str, backend: Any, names: dict[str, str], **tokenizer: Any) -> Path:
    """A token classifier with random weights, wide enough that labels differ, and its tokenizer."""
    import torch
    import transformers

    made = transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, model_max_length=MAX_LENGTH, model_input_names=["input_ids", "attention_mask"],
        **{f"{name}_token": token for name, token in names.items()}, **tokenizer,
    )  # fmt: skip
    made.save_pretrained(folder)
    config = transformers.AutoConfig.for_model(
        kind, vocab_size=len(made) + 8, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=64, max_position_embeddings=MAX_LENGTH + 2, initializer_range=0.4, pad_token_id=0,
        id2label=dict(enumerate(LABELS)), label2id={name: i for i, name in enumerate(LABELS)},
    )  # fmt: skip
    torch.manual_seed(3)
    transformers.AutoModelForTokenClassification.from_config(config).save_pretrained(folder)
    return folder


def _byte_level() -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    backend = Tokenizer(models.BPE(unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    backend.train_from_iterator(TEXTS, trainers.BpeTrainer(special_tokens=special, initial_alphabet=alphabet))
    backend.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=False)
    return backend


def _unigram() -> Any:
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

    backend = Tokenizer(models.Unigram())
    backend.normalizer = normalizers.NFKC()
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    special = ["[PAD]", "[CLS]", "[SEP]", "[UNK]"]
    seen = [text for text in TEXTS if text.isascii()]  # the other characters are unknown
    trainer = trainers.UnigramTrainer(vocab_size=80, special_tokens=special, unk_token="[UNK]", show_progress=False)
    backend.train_from_iterator(seen, trainer)
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    return backend


@pytest.fixture(scope="module")
def taggers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("taggers")
    bert = {"pad": "[PAD]", "cls": "[CLS]", "sep": "[SEP]", "unk": "[UNK]"}
    roberta = {"pad": "<pad>", "cls": "<s>", "sep": "</s>", "unk": "<unk>"}
    return {
        "bert": _save(root / "bert", "bert", word_piece_tokenizer(), bert),
        "left": _save(root / "left", "bert", word_piece_tokenizer(), bert, truncation_side="left"),
        "roberta": _save(root / "roberta", "roberta", _byte_level(), roberta),
        "deberta-v2": _save(root / "deberta", "deberta-v2", _unigram(), bert),
    }


def _pipeline(folder: Path, max_length: int = MAX_LENGTH) -> Any:
    from transformers import pipeline

    made = pipeline("token-classification", model=str(folder), device="cpu")
    made.tokenizer.model_max_length = max_length
    return made


def _compare(found: list[dict[str, Any]], wanted: list[dict[str, Any]]) -> None:
    """All fields equal, in their order; scores within 1e-4."""
    assert [list(entity) for entity in found] == [list(entity) for entity in wanted]
    plain = [[{k: v for k, v in e.items() if k != "score"} for e in side] for side in (found, wanted)]
    assert plain[0] == plain[1]
    np.testing.assert_allclose([e["score"] for e in found], [e["score"] for e in wanted], atol=1e-4)


def _entities(folder: Path, texts: list[Any], **settings: Any) -> list[Any]:
    with packhorse.load(folder, **settings) as engine:
        table = engine.predict(texts)
    assert table["error"].null_count == len(texts)
    return table["entities"].to_pylist()


@pytest.mark.filterwarnings("ignore:Tokenizer does not support real words")
@pytest.mark.parametrize("kind", ["bert", "left", "roberta", "deberta-v2"])
def test_entities_are_those_of_the_pipeline(taggers: dict[str, Path], kind: str) -> None:
    reference = _pipeline(taggers[kind])
    for how in HOWS:
        batching = {"batching": "padded"} if how in ("first", "none") and kind == "roberta" else {}
        found = _entities(taggers[kind], TEXTS, aggregation=how, ignore_labels=["O", "ORG", "B-LOC"], **batching)
        for text, entities in zip(TEXTS, found, strict=True):
            wanted = reference(text, aggregation_strategy=how, ignore_labels=["O", "ORG", "B-LOC"])
            _compare(entities, wanted)
        assert sum(map(len, found)) > 20


@pytest.mark.filterwarnings("ignore:Tokenizer does not support real words")
@pytest.mark.parametrize("kind", ["bert", "roberta", "deberta-v2"])
def test_lists_of_words_are_read_as_they_are_split(taggers: dict[str, Path], kind: str) -> None:
    reference = _pipeline(taggers[kind])
    for how in ("none", "simple", "average"):
        found = _entities(taggers[kind], WORDS, aggregation=how)
        for words, entities in zip(WORDS, found, strict=True):
            wanted = reference([words], is_split_into_words=True, aggregation_strategy=how)[0] if words else []
            _compare(entities, wanted)


@pytest.mark.filterwarnings("ignore:Tokenizer does not support real words")
@pytest.mark.parametrize("kind", ["bert", "roberta"])
@pytest.mark.parametrize("stride", [0, 7])
def test_windows_give_the_entities_of_the_pipeline_with_stride(
    taggers: dict[str, Path], kind: str, stride: int
) -> None:
    reference = _pipeline(taggers[kind], 24)
    texts = [TEXTS[0], TEXTS[8], " ".join(TEXTS), WORDS[-1]]
    for how in ("simple", "max" if stride else "average"):
        settings = {"aggregation": how, "long": "windows", "stride": stride, "max_length": 24}
        with packhorse.load(taggers[kind], **settings) as engine:
            found = [row for given in (texts[:3], texts[3:]) for row in engine.predict(given)["entities"].to_pylist()]
        for text, entities in zip(texts, found, strict=True):
            is_split = isinstance(text, list)
            given = [text] if is_split else text
            wanted = reference(given, aggregation_strategy=how, stride=stride, is_split_into_words=is_split)
            _compare(entities, wanted[0] if is_split else wanted)


def test_each_token_of_overlapping_windows_counts_once_where_it_stands_farthest_from_a_cut(
    taggers: dict[str, Path],
) -> None:
    import torch
    from transformers import AutoModelForTokenClassification, AutoTokenizer

    text, room, stride = " ".join(TEXTS), 22, 9
    settings = {"aggregation": "none", "ignore_labels": []}
    found = _entities(taggers["bert"], [text], long="windows", stride=stride, max_length=room + 2, **settings)[0]
    tokenizer = AutoTokenizer.from_pretrained(taggers["bert"])
    model = AutoModelForTokenClassification.from_pretrained(taggers["bert"])
    whole = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, truncation=False)
    ids = whole["input_ids"]
    best: dict[int, tuple[int, Any]] = {}
    for start in range(0, len(ids) - stride, room - stride):
        part = ids[start : start + room]
        with torch.no_grad():
            logits = model(torch.tensor([[2, *part, 3]])).logits[0, 1:-1]
        for i, scores in enumerate(logits.softmax(-1).numpy()):
            left = i if start else len(ids)
            right = len(part) - 1 - i if start + room < len(ids) else len(ids)
            if min(left, right) > best.get(start + i, (-1, None))[0]:
                best[start + i] = (min(left, right), scores)
    assert [(e["start"], e["end"]) for e in found] == [tuple(span) for span in whole["offset_mapping"]]
    assert [e["index"] for e in found] == list(range(1, len(ids) + 1))
    assert [e["entity"] for e in found] == [LABELS[best[i][1].argmax()] for i in range(len(ids))]
    np.testing.assert_allclose([e["score"] for e in found], [best[i][1].max() for i in range(len(ids))], atol=1e-4)


def test_rows_that_cannot_be_done_are_errors_and_the_others_are_not(taggers: dict[str, Path]) -> None:
    with packhorse.load(taggers["bert"], long="error") as engine:
        table = engine.predict(["a cat", None, TEXTS[8], "", 5])
        words = engine.predict([["a", "cat"], None, "a cat", ["a", 5], []])
    kinds = [error and error["kind"] for error in table["error"].to_pylist()]
    assert kinds == [None, "null_text", "text_too_long", None, "not_text"]
    assert [entities is None for entities in table["entities"].to_pylist()] == [kind is not None for kind in kinds]
    assert [e and e["kind"] for e in words["error"].to_pylist()] == [None, "null_text", "not_a_list", "not_text", None]
    assert words["entities"][0].as_py() == table["entities"][0].as_py()
    assert words["entities"][4].as_py() == table["entities"][3].as_py() == []


def test_second_texts_are_refused(taggers: dict[str, Path]) -> None:
    with packhorse.load(taggers["bert"]) as engine, pytest.raises(UsageError, match="one text a row"):
        engine.predict(["a cat"], ["a dog"])


def _written(path: Path) -> list[Any]:
    if path.suffix == ".parquet":
        return pq.read_table(path)["entities"].to_pylist()
    return [json.loads(line)["entities"] for line in path.read_text().splitlines()]


def test_a_job_writes_what_predict_gives_and_counts_what_was_cut(taggers: dict[str, Path], tmp_path: Path) -> None:
    rows = [*TEXTS, None]
    with packhorse.load(taggers["bert"], aggregation="max") as engine:
        wanted = engine.predict(rows)["entities"].to_pylist()
    pq.write_table(pa.table({"text": rows}), tmp_path / "in.parquet")
    report = packhorse.run(taggers["bert"], tmp_path / "in.parquet", str(tmp_path / "out.parquet"), aggregation="max")
    assert report.counters.truncated_rows == 1
    assert _written(tmp_path / "out.parquet") == wanted
    (tmp_path / "in.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in rows))
    done = forked("run", taggers["bert"], tmp_path / "in.jsonl", "-o", tmp_path / "out.jsonl", "--aggregation", "max")
    assert done.returncode == 0, done.stderr
    written = _written(tmp_path / "out.jsonl")
    assert [[e["word"] for e in row or ()] for row in written] == [[e["word"] for e in row or ()] for row in wanted]


def test_a_column_of_words_is_read_from_parquet_and_from_json_arrays(taggers: dict[str, Path], tmp_path: Path) -> None:
    rows = [*WORDS, None]
    with packhorse.load(taggers["bert"]) as engine:
        wanted = engine.predict(rows)["entities"].to_pylist()
        pq.write_table(pa.table({"tokens": rows}), tmp_path / "in.parquet")
        (tmp_path / "in.jsonl").write_text("".join(json.dumps({"tokens": words}) + "\n" for words in rows))
        for given in ("in.parquet", "in.jsonl"):
            engine.run(tmp_path / given, str(tmp_path / f"{given}.parquet"), text_column="tokens")
            assert _written(tmp_path / f"{given}.parquet") == wanted
        engine.run(tmp_path / "in.parquet", str(tmp_path / "out.csv"), text_column="tokens")
    import csv

    with (tmp_path / "out.csv").open(newline="") as file:
        columns = [row["entities"] for row in csv.DictReader(file)]
    assert [[e["start"] for e in json.loads(cell)] if cell else None for cell in columns] == [
        row and [e["start"] for e in row] if row is not None else None for row in wanted
    ]


@pytest.mark.slow
def test_worker_processes_are_handed_a_column_of_words(taggers: dict[str, Path], tmp_path: Path) -> None:
    pq.write_table(pa.table({"id": range(len(WORDS)), "tokens": WORDS}), tmp_path / "in.parquet")
    with packhorse.load(taggers["bert"]) as engine:
        wanted = engine.predict(WORDS)["entities"].to_pylist()
    out = tmp_path / "out.parquet"
    packhorse.run(
        taggers["bert"], tmp_path / "in.parquet", str(out), text_column="tokens", keep=["id"], devices="cpu:2"
    )
    assert _written(out) == wanted
