"""A text once for each of its tokens, without a model."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

from packhorse.data import Tokens
from packhorse.sequences import MaskedTokens, Sequencing
from packhorse.tokenize.dedup import unique_rows
from packhorse.tokenize.huge import TokenizeSettings
from packhorse.tokenize.sequencing import SequenceTokenizer
from tests.models import WORDS, word_piece_tokenizer

CLS, SEP, MASK = 2, 3, 4


def tokenized(texts: list[str | None], pairs: list[str | None] | None = None, **sequencing: object) -> list[list[int]]:
    """[row, ids with the mask ..., target] of each sequence."""
    settings = TokenizeSettings(max_length=10, with_type_ids=True, mask_id=MASK)
    given = Sequencing(kind="masked", takes_empty=True, **sequencing)  # type: ignore[arg-type]
    made = SequenceTokenizer(word_piece_tokenizer(), settings, given).tokenize(texts, pairs)
    tokens, rows = made.tokens, made.row_of
    assert rows is not None and tokens.targets is not None
    assert not {i for i, text in enumerate(texts) if text is not None} & set(made.errors)
    return [
        [int(row), *tokens.ids[a:b].tolist(), int(tokens.targets[a:b].max())]
        for row, a, b in zip(rows, tokens.offsets[:-1], tokens.offsets[1:], strict=True)
    ]


def test_each_token_of_a_text_is_masked_once() -> None:
    good, film = (word_piece_tokenizer().token_to_id(word) for word in ("good", "film"))
    assert tokenized(["good film", "", None, "film"]) == [
        [0, CLS, MASK, film, SEP, good], [0, CLS, good, MASK, SEP, film], [3, CLS, MASK, SEP, film],
    ]  # fmt: skip


def test_of_a_pair_the_second_text_is_masked() -> None:
    good, film = (word_piece_tokenizer().token_to_id(word) for word in ("good", "film"))
    assert tokenized(["good"], ["film"]) == [[0, CLS, good, SEP, MASK, SEP, film]]
    assert tokenized(["good"], [""]) == []


@pytest.mark.parametrize("stride", [0, 1, 4, 5, 7])
@pytest.mark.parametrize("length", [1, 8, 9, 15, 16, 17, 40])
def test_windows_mask_every_token_once(stride: int, length: int) -> None:
    words = WORDS * 2
    own = word_piece_tokenizer().encode(" ".join(words[:length]), add_special_tokens=False).ids
    made = tokenized([" ".join(words[:length])], long="windows", stride=stride)
    assert [row[-1] for row in made] == own


def test_equal_ones_are_found_and_only_what_is_taken_is_made() -> None:
    bare = Tokens(np.array([5, 6, 7, 5, 6, 7, 5, 6], np.int32), np.array([0, 3, 6, 8]))
    masked = MaskedTokens(bare, np.array([0, 0, 1, 1, 2]), np.array([0, 1, 1, 2, 1]), MASK)
    unique = unique_rows(masked)
    assert unique.rows.tolist() == [0, 1, 3, 4]
    assert unique.inverse.tolist() == [0, 1, 1, 2, 3]
    assert masked.plain is None and masked.masked_ids.tolist() == [5, 6, 6, 7, 6]
    taken = pickle.loads(pickle.dumps(masked.take(np.array([4, 0]))))
    assert taken.ids.tolist() == [5, MASK, MASK, 6, 7]
    assert taken.targets.tolist() == [-1, 6, 5, -1, -1]
    assert masked.take(unique.rows).lengths.tolist() == [3, 3, 3, 2]
