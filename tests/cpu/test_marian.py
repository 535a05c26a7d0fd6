"""Marian's tokenizer of two SentencePiece files and a vocabulary, without the package sentencepiece."""

from __future__ import annotations

import json
import re
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow.parquet as pq
import pytest

import packhorse
from packhorse.backends.torch import load_tokenizer
from packhorse.backends.torch.marian import load_marian
from packhorse.errors import ModelError
from packhorse.tokenize.encoder import HfEncoder
from tests.marian import (
    CONTROL,
    NORMAL,
    SOURCE,
    UNKNOWN,
    model_of,
    save_marian,
    save_marian_tokenizer,
    sentencepiece_file,
)

HAS_SENTENCEPIECE = find_spec("sentencepiece") is not None
ASKED: dict[str, Any] = {"max_new_tokens": 12}

# Texts, and the tokens that SentencePiece 0.2.3 and vocab.json give: the cut of the least cost, an unknown character 10
# below the worst piece, a run of them one surface; what vocab.json lacks is <unk>.
ENCODED = {
    "": [],
    "   ": [],
    "the cat": ["▁the", "▁cat"],
    "  the   cats ": ["▁the", "▁cat", "s"],
    "the cat sat": ["▁the", "▁cat", "<unk>"],  # its own piece, which vocab.json lacks
    "catsat": ["▁cat", "s", "at"],
    ">>deu<< the cat": [">>deu<<", "▁the", "▁cat"],
    ">>deu<<the cat": [">>deu<<", "▁the", "▁cat"],
    ">>zho_Hans<<": [">>zho_Hans<<"],
    ">>xyz<< the": ["<unk>", "▁the"],
    "the >>deu<<": ["▁the", "▁", ">", ">", "d", "e", "u", "<unk>"],
    " >>deu<<": ["▁", ">", ">", "d", "e", "u", "<unk>"],
    "the 東京": ["▁the", "▁", "東京"],  # a surface of characters that the source does not know
    "the 東京都": ["▁the", "▁", "<unk>"],
    "東 the": ["▁", "<unk>", "▁the"],
    "über": ["▁", "ü", "b", "e", "r"],  # ▁über is the target's piece
    "the üß": ["▁the", "▁", "<unk>"],
    "üaß": ["▁", "ü", "a", "ß"],
    "a</s>b": ["▁", "a", "</s>", "▁", "b"],
    "😀 é\ufdd0": ["▁", "<unk>", "▁", "é", "<unk>"],
}
DECODED = {
    "die katze": ["▁die", "▁katze", "</s>", "<pad>"],
    "über die東京": ["▁über", "<unk>", "▁die", "東京"],
    "katze>>deu<< die": ["▁katze", ">>deu<<", "▁die"],
    "cat": ["▁", "▁cat", "▁"],
    "": ["</s>"],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("marian") / "model"


@pytest.fixture(scope="module")
def ids(folder: Path) -> dict[str, int]:
    return save_marian(folder)


def encoded(folder: Path, texts: list[str]) -> list[list[int]]:
    encoder = HfEncoder(load_marian(folder).backend, 1)
    raw = encoder.encode_column(texts)
    encoder.close()
    ends = raw.lengths.cumsum()
    return [raw.ids[end - length : end].tolist() for end, length in zip(ends, raw.lengths, strict=True)]


def test_texts_become_the_ids_of_the_vocabulary(folder: Path, ids: dict[str, int]) -> None:
    assert encoded(folder, list(ENCODED)) == [[ids[token] for token in tokens] for tokens in ENCODED.values()]


def test_ids_become_texts_as_with_both_files(folder: Path, ids: dict[str, int]) -> None:
    backend = load_marian(folder).backend
    rows = [[ids[token] for token in tokens] for tokens in DECODED.values()]
    assert backend.decode_batch(rows, skip_special_tokens=True) == list(DECODED)


def test_an_end_token_stands_behind_a_text(folder: Path, ids: dict[str, int]) -> None:
    backend = load_marian(folder).backend
    assert backend.encode("the cat").ids == [ids["▁the"], ids["▁cat"], ids["</s>"]]
    assert backend.encode("the", "cat").ids == [ids["▁the"], ids["▁cat"], ids["</s>"]]


@pytest.mark.skipif(not HAS_SENTENCEPIECE, reason="needs the package sentencepiece")
def test_texts_and_ids_are_those_of_transformers(folder: Path, ids: dict[str, int]) -> None:
    from transformers import MarianTokenizer

    slow = MarianTokenizer.from_pretrained(folder)
    assert encoded(folder, list(ENCODED)) == [slow(text, add_special_tokens=False).input_ids for text in ENCODED]
    rows = [[ids[token] for token in tokens] for tokens in DECODED.values()]
    assert [slow.decode(row, skip_special_tokens=True) for row in rows] == list(DECODED)


def test_translations_are_those_of_generate_one_text_at_a_time(
    folder: Path, ids: dict[str, int], tmp_path: Path
) -> None:
    import torch
    from transformers import MarianMTModel

    model: Any = MarianMTModel.from_pretrained(folder, dtype=torch.float32).eval()
    texts = [text for text in ENCODED if text.strip()]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    packhorse.run(
        folder, tmp_path / "rows.jsonl", tmp_path / "out", task="translation", devices="cpu", logprobs=True, **ASKED
    )
    found = pq.read_table(tmp_path / "out")
    backend = load_marian(folder).backend
    for text, written, shown in zip(
        texts, *map(found.column, ("generated_token_ids", "translation_text")), strict=True
    ):
        source = torch.tensor([[ids[token] for token in ENCODED[text]] + [ids["</s>"]]])
        wanted = model.generate(source, do_sample=False, num_beams=1, **ASKED)[0, 1:].tolist()
        assert written.as_py() == wanted
        assert shown.as_py() == backend.decode(wanted, skip_special_tokens=True)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("source.spm", b"\x0a\xff\x01", "cannot be read as a SentencePiece model"),
        ("source.spm", b"", "no Unigram model"),
        ("source.spm", sentencepiece_file(SOURCE, model_type=2), "no Unigram model"),
        ("source.spm", sentencepiece_file(SOURCE, kind=6), "no Unigram model"),
        ("vocab.json", b"[]", "holds a JSON list"),
        ("vocab.json", b'{"a": 0, "b": 2}', "its ids are not 0 to 1"),
        ("vocab.json", b'{"a": 0, "<unk>": 1}', "has no </s>, <pad>"),
    ],
)
def test_files_that_are_not_marians_are_refused_by_name(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    save_marian_tokenizer(tmp_path)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ModelError, match=f"{name}.*{re.escape(message)}"):
        load_marian(tmp_path)


def test_a_t5_needs_no_more_than_its_sentencepiece_model(tmp_path: Path) -> None:
    """The same tokens as with the tokenizer.json that transformers saves of it."""
    from transformers import T5Tokenizer

    pieces = ["<pad>", "</s>", "<unk>", *SOURCE]
    kinds = [CONTROL, CONTROL, UNKNOWN, *[NORMAL] * len(SOURCE)]
    (tmp_path / "spiece.model").write_bytes(
        model_of([*zip(pieces, [0.0] * 3 + list(SOURCE.values()), kinds, strict=True)])
    )
    (tmp_path / "config.json").write_text('{"model_type": "t5"}')
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "T5Tokenizer", "extra_ids": 3}')
    backend = load_tokenizer(SimpleNamespace(folder=tmp_path)).backend  # type: ignore[arg-type]
    ids = {name: i for i, name in enumerate([*pieces, "<extra_id_2>", "<extra_id_1>", "<extra_id_0>"])}
    tokens = ["▁the", "▁cat", "s", "<extra_id_0>", "▁", "é", "<unk>", "</s>"]
    assert backend.encode("the cats <extra_id_0> é東京").ids == [ids[token] for token in tokens]
    vocab = [*zip(pieces, [0.0] * 3 + list(SOURCE.values()), strict=True)] + [
        (f"<extra_id_{i}>", 0.0) for i in (2, 1, 0)
    ]
    whole = T5Tokenizer(vocab=vocab, extra_ids=3)
    texts = list(ENCODED)
    assert [e.ids for e in backend.encode_batch(texts)] == whole(texts).input_ids
    assert backend.decode(backend.encode("the cat").ids, skip_special_tokens=True) == "the cat"


@pytest.mark.skipif(HAS_SENTENCEPIECE, reason="the package sentencepiece is there")
def test_another_sentencepiece_model_says_what_is_missing(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(sentencepiece_file(SOURCE))
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "LlamaTokenizer"}')
    with pytest.raises(ModelError, match=r"has tokenizer.model and no tokenizer.json; pip install sentencepiece"):
        load_tokenizer(SimpleNamespace(folder=tmp_path))  # type: ignore[arg-type]
