"""The reference: transformers alone, row by row, in fp32, so without any padding. Nothing of packhorse in it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tests.models import WORDS

MAX_LENGTH = 64  # of the models in these tests

Pairs = Sequence[str] | None


def texts_of_all_lengths(count: int = 40, seed: int = 7) -> list[str]:
    """An empty text, one token, far too long ones, odd characters, a duplicate; then random words."""
    rng = np.random.default_rng(seed)
    odd = [
        "",
        "a",
        "   ",
        "Good FILM!",
        "naïve café 漢字 🙂",
        "a\x00b\nc\td",
        "very boring " * 60,
        "x" * 300,
        "the end",
        "the end",
    ]
    drawn = [" ".join(rng.choice(WORDS, size=n)) for n in rng.integers(1, 90, size=count - len(odd))]
    return odd + drawn


def load(folder: Path, auto: str = "AutoModelForSequenceClassification") -> tuple[Any, Any]:
    """Model and tokenizer of a folder."""
    import transformers

    model = getattr(transformers, auto).from_pretrained(folder, dtype=torch.float32).eval()
    return model, transformers.AutoTokenizer.from_pretrained(folder)


def logits(folder: Path, texts: Sequence[str], pairs: Pairs = None, max_length: int = MAX_LENGTH) -> torch.Tensor:
    """[n, labels] of a sequence classifier."""
    model, tokenizer = load(folder)
    with torch.inference_mode():
        rows = [model(**_encoded(tokenizer, texts, pairs, i, max_length)).logits[0] for i in range(len(texts))]
    return torch.stack(rows)


def hidden_states(
    folder: Path, texts: Sequence[str], auto: str = "AutoModel", max_length: int = MAX_LENGTH
) -> list[torch.Tensor]:
    """[tokens, hidden] a row: the last hidden state of a body."""
    model, tokenizer = load(folder, auto)
    with torch.inference_mode():
        return [
            model(**_encoded(tokenizer, texts, None, i, max_length)).last_hidden_state[0] for i in range(len(texts))
        ]


def tokens_lost(folder: Path, texts: Sequence[str], pairs: Pairs = None, max_length: int = MAX_LENGTH) -> list[int]:
    """Tokens that truncation cuts off, by row."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    whole = tokenizer(list(texts), None if pairs is None else list(pairs))["input_ids"]
    return [max(len(ids) - max_length, 0) for ids in whole]


def _encoded(tokenizer: Any, texts: Sequence[str], pairs: Pairs, row: int, max_length: int) -> Any:
    # Lists of one: given a lone pair, transformers drops an empty second text, in a list it does not.
    second = [pairs[row]] if pairs is not None else None
    return tokenizer([texts[row]], second, truncation=True, max_length=max_length, return_tensors="pt")
