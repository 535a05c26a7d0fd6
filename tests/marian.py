"""Folders like those of Helsinki-NLP/opus-mt-*: two SentencePiece models, made here by hand, and a vocabulary whose ids
are not theirs."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path

NORMAL, UNKNOWN, CONTROL = 1, 2, 3
SOURCE = {
    "▁": -3.0, "▁the": -3.5, "▁cat": -5.0, "▁sat": -5.2, "▁ca": -7.0, "t": -4.5, "s": -4.4, "▁s": -5.1, "at": -5.5,
    "he": -6.0, ".": -4.0, ",": -4.1, **{c: -8.0 - i / 10 for i, c in enumerate("abcdefghijklmnopqruvwxyz>é")},
}  # fmt: skip
TARGET = {"▁": -3.0, "▁die": -3.5, "▁katze": -5.0, "ü": -6.0, "▁über": -6.5, "東京": -6.6, "ß": -7.0, "s": -5.0}
CODES = (">>deu<<", ">>zho_Hans<<")
ABSENT = "▁sat"  # of the source's pieces the one that the vocabulary lacks


def sentencepiece_file(pieces: Mapping[str, float], kind: int = NORMAL, model_type: int = 1) -> bytes:
    """<unk>, <s> and </s>, then the pieces, all of that kind."""
    listed = [("<unk>", 0.0, UNKNOWN), ("<s>", 0.0, CONTROL), ("</s>", 0.0, CONTROL)]
    return model_of(listed + [(text, score, kind) for text, score in pieces.items()], model_type)


def model_of(pieces: Sequence[tuple[str, float, int]], model_type: int = 1) -> bytes:
    """A ModelProto of pieces, scores and kinds; no rules for characters."""
    made = b"".join(
        _field(1, _field(1, text.encode()) + b"\x15" + struct.pack("<f", score) + b"\x18" + bytes([kind]))
        for text, score, kind in pieces
    )
    return made + _field(2, b"\x18" + bytes([model_type])) + _field(3, _field(1, b"identity"))


def _field(number: int, content: bytes) -> bytes:
    length = len(content)
    size = bytes([length]) if length < 128 else bytes([length & 127 | 128, length >> 7])
    return bytes([number << 3 | 2]) + size + content


def vocabulary() -> dict[str, int]:
    """</s> and <unk> first, <pad> last, as Marian's are."""
    tokens = [*reversed(SOURCE), *TARGET, *CODES]
    tokens = [token for token in dict.fromkeys(tokens) if token != ABSENT]
    return {token: i for i, token in enumerate(["</s>", "<unk>", *tokens, "<pad>"])}


def save_marian_tokenizer(folder: Path) -> dict[str, int]:
    folder.mkdir(parents=True, exist_ok=True)
    ids = vocabulary()
    (folder / "source.spm").write_bytes(sentencepiece_file(SOURCE))
    (folder / "target.spm").write_bytes(sentencepiece_file(TARGET))
    (folder / "vocab.json").write_text(json.dumps(ids))
    settings = {"source_lang": "eng", "target_lang": "deu", "model_max_length": 64}
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "MarianTokenizer", **settings}))
    return ids


def save_marian(folder: Path) -> dict[str, int]:
    """The tokenizer, and a model with random weights in float32. Gives the vocabulary."""
    from tests.generators import seq2seq_model

    ids = save_marian_tokenizer(folder)
    pad = ids["<pad>"]
    model = seq2seq_model(
        "marian", vocab_size=len(ids), decoder_vocab_size=len(ids), pad_token_id=pad, decoder_start_token_id=pad,
        eos_token_id=0, forced_eos_token_id=None, max_position_embeddings=64,
    )  # fmt: skip
    model.generation_config.bad_words_ids = [[pad]]
    model.generation_config.no_repeat_ngram_size = 2
    model.save_pretrained(folder)
    return ids
