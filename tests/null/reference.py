"""What the null backend has to predict, worked out row by row with Python integers and the tokenizer's own encode."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from tests.models import WORDS, word_piece_tokenizer

MAX_LENGTH = 64  # of the model in the fixture `null_model`
MASK = (1 << 64) - 1


class Prediction(NamedTuple):
    label: str | None
    score: float | None
    error: str | None


def checksum(ids: Sequence[int], type_ids: Sequence[int], width: int) -> list[np.float32]:
    """24 bits of a hash of the ids and their places, another one a column; in [0, 1)."""
    total = 0
    for place, (token, kind) in enumerate(zip(ids, type_ids, strict=True)):
        total += (token + 1) * (place * 0x9E3779B97F4A7C15 & MASK | 1) + (kind << 40)
    weights = [(column * 0xD1B54A32D192ED03 & MASK) | 1 for column in range(1, width + 1)]
    return [np.float32((total * weight & MASK) >> 40) / np.float32(1 << 24) for weight in weights]


def predictions(
    texts: Sequence[str | None], pairs: Sequence[str | None] | None = None, max_length: int = MAX_LENGTH
) -> list[Prediction]:
    """Of the two-label model of the fixture, one a row."""
    tokenizer = word_piece_tokenizer()
    tokenizer.enable_truncation(max_length)
    rows = []
    for i, text in enumerate(texts):
        pair = None if pairs is None else pairs[i]
        if text is None or (pairs is not None and pair is None):
            rows.append(Prediction(None, None, "null_text"))
            continue
        encoding = tokenizer.encode(text) if pair is None else tokenizer.encode(text, pair)
        values = checksum(encoding.ids, encoding.type_ids, 2)
        best = 1 if values[1] > values[0] else 0
        rows.append(Prediction(f"L{best}", float(values[best]), None))
    return rows


def predicted(rows: Sequence[dict]) -> list[Prediction]:
    """The same three of rows of an output."""
    return [
        Prediction(
            row["label"],
            None if row["score"] is None else float(np.float32(row["score"])),  # JSON has its shortest digits
            row["error"] and row["error"]["kind"],
        )
        for row in rows
    ]


def some_texts(count: int, seed: int = 0) -> list[str | None]:
    """Random words: short, too long for the model, empty, null, and many twice."""
    draw = random.Random(seed)
    texts: list[str | None] = ["", None, "the end", "the end", "naïve café 漢字 🙂", "very boring " * 50]
    while len(texts) < count:
        texts.append(" ".join(draw.choices(WORDS, k=draw.choice([1, 2, 3, 10, 40, 90]))))
    return texts[:count]
