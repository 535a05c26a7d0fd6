"""The fast tokenizer against the library's own encode with truncation, row by row."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Encoding, Tokenizer, models, pre_tokenizers

from packhorse.errors import PackhorseError
from packhorse.sequences import Tokenized
from packhorse.tokenize.fast import FastTokenizer
from packhorse.tokenize.huge import TokenizeSettings
from tests.models import WORDS, word_piece_tokenizer
from tests.null.reference import some_texts
from tests.null.test_tokens import Rows, lists

Texts = Sequence[str | None]
TEXT = st.text(max_size=30) | st.lists(st.sampled_from(WORDS), max_size=30).map(" ".join)
CLS, UNK, SEP, GOOD = (word_piece_tokenizer().token_to_id(t) for t in ("[CLS]", "[UNK]", "[SEP]", "good"))


def tokenize(
    texts: Texts, pairs: Texts | None = None, max_length: int | None = 16, backend: Tokenizer | None = None, **more: Any
) -> Tokenized:  # fmt: skip
    settings = TokenizeSettings(max_length=max_length, with_type_ids=pairs is not None, **more)
    tokenizer = FastTokenizer(backend or word_piece_tokenizer(), settings)
    try:
        return tokenizer.tokenize(texts, pairs)
    finally:
        tokenizer.close()


def ids(made: Tokenized) -> Rows:
    return lists(made.tokens.ids, made.tokens.offsets)


def encode(text: str, pair: str | None = None, max_length: int | None = 16, direction: str = "right") -> Encoding:
    tokenizer = word_piece_tokenizer()
    if max_length is not None:
        tokenizer.enable_truncation(max_length, direction=direction)
    return tokenizer.encode(text, pair)


@given(st.lists(TEXT, max_size=12), st.sampled_from([3, 8, 16, None]))
def test_single_texts_are_those_of_the_library(texts: list[str], max_length: int | None) -> None:
    made = tokenize(texts, max_length=max_length)
    assert ids(made) == [encode(text, None, max_length).ids for text in texts]
    assert made.tokens.type_ids is None and not made.errors


@given(st.lists(st.tuples(TEXT, TEXT), max_size=12), st.sampled_from([4, 9, 16, None]))
def test_pairs_and_their_type_ids_are_those_of_the_library(
    pairs: list[tuple[str, str]], max_length: int | None
) -> None:
    made = tokenize([a for a, _ in pairs], [b for _, b in pairs], max_length)
    expected = [encode(a, b, max_length) for a, b in pairs]
    assert ids(made) == [e.ids for e in expected]
    if pairs:
        assert made.tokens.type_ids is not None
        assert lists(made.tokens.type_ids, made.tokens.offsets) == [e.type_ids for e in expected]


@given(st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=12), st.booleans())
def test_what_truncation_takes_away_is_counted_exactly(rows: list[tuple[str, str]], has_pairs: bool) -> None:
    firsts, seconds = [a for a, _ in rows], [b for _, b in rows] if has_pairs else None
    made = tokenize(firsts, seconds, max_length=8)
    whole = [len(encode(a, b if has_pairs else None, None).ids) for a, b in rows]
    assert made.truncated_rows == sum(n > 8 for n in whole)
    assert made.truncated_tokens == sum(max(n - 8, 0) for n in whole)


@pytest.mark.parametrize("threads", [1, 4])
def test_threads_keep_rows_in_order(threads: int) -> None:
    texts = some_texts(3_000)
    made = tokenize(texts, max_length=64, threads=threads)
    assert ids(made) == [[] if text is None else encode(text, None, 64).ids for text in texts]


@pytest.mark.parametrize("pairs", [None, ["a", "b", "c"], ["a", None, "c"]])
def test_a_null_is_an_error_and_leaves_its_neighbours_alone(pairs: list[str | None] | None) -> None:
    made = tokenize(["good film", None if pairs is None or pairs[1] else "bad", "the end"], pairs)
    assert {row: error.kind for row, error in made.errors.items()} == {1: "null_text"}
    first = encode("good film", "a" if pairs else None).ids
    second = encode("the end", "c" if pairs else None).ids
    assert ids(made) == [first, [], second]


def test_an_empty_text_has_its_special_tokens() -> None:
    assert ids(tokenize(["", " \n\t"])) == [[CLS, SEP]] * 2


def test_a_text_without_any_token_is_an_error() -> None:
    bare = Tokenizer(models.WordLevel({"[UNK]": 0, "good": 1}, unk_token="[UNK]"))
    bare.pre_tokenizer = pre_tokenizers.Whitespace()
    made = tokenize(["good", "", "good good"], backend=bare)
    assert {row: error.kind for row, error in made.errors.items()} == {1: "no_tokens"}
    assert ids(made) == [[1], [], [1, 1]]


def test_no_rows_make_no_tokens() -> None:
    assert (tokenize([]).tokens.num_rows, tokenize([], []).tokens.num_rows) == (0, 0)


HUGE = {
    "words": "good film " * 30_000,
    "lines": "good film\n" * 30_000,
    "tabs": "good\tfilm\t" * 30_000,
    "wide_spaces": "good\u3000film\u2028" * 30_000,
    "no_space": "!" * 300_000,
    "no_space_wide": "漢" * 300_000,
    "space_at_the_end_alone": "!" * 299_999 + " ",
}


@pytest.mark.parametrize("name", HUGE)
def test_a_huge_text_keeps_the_tokens_it_would_keep_whole(name: str) -> None:
    made = tokenize([HUGE[name], "good"], max_length=64)
    assert not made.errors
    assert ids(made) == [encode(HUGE[name], None, 64).ids, [CLS, GOOD, SEP]]
    assert made.truncated_rows == 1 and made.truncated_tokens > 0


def test_a_huge_text_whose_beginning_makes_too_few_tokens_is_an_error_and_not_wrong() -> None:
    made = tokenize(["x" * 300_000, "good" + " " * 300_000 + "film", "good"], max_length=64)
    assert {row: error.kind for row, error in made.errors.items()} == {0: "text_too_long", 1: "text_too_long"}
    assert ids(made) == [[], [], [CLS, GOOD, SEP]]


def test_a_huge_first_text_of_a_pair_is_right_or_an_error() -> None:
    first, second = "x" * 199_990 + " " + "good " * 2_000, "film " * 200
    made = tokenize([first], [second], max_length=64)
    assert made.errors or ids(made) == [encode(first, second, 64).ids]


def test_a_huge_text_truncated_from_the_left_is_right_or_an_error() -> None:
    text = "good " * 50_000 + "end"
    made = tokenize([text], max_length=8, truncation_side="left")
    assert made.errors or ids(made) == [encode(text, None, 8, "left").ids]


def test_truncation_from_the_left_keeps_the_end() -> None:
    assert ids(tokenize(["good film bad end"], max_length=4, truncation_side="left")) == [
        encode("bad end", None, None).ids
    ]


def test_without_a_maximum_length_long_texts_stay_whole_up_to_a_limit() -> None:
    made = tokenize(["good " * 60_000, "good " * 200_001], max_length=None)
    assert ids(made)[0] == [CLS, *[GOOD] * 60_000, SEP]
    assert {row: error.kind for row, error in made.errors.items()} == {1: "text_too_long"}
    assert "--max-length" in made.errors[1].message


@pytest.mark.parametrize("pairs", [None, ["film bad end"]])
@pytest.mark.parametrize("max_length", [1, 2, 3, 4])
def test_no_row_is_ever_longer_than_the_maximum_length(max_length: int, pairs: list[str] | None) -> None:
    try:
        made = tokenize(["a good film"], pairs, max_length)
    except PackhorseError:
        return  # there is no room for the special tokens: to refuse is right, to pass them on is not
    assert max(map(len, ids(made))) <= max_length


def test_a_long_pair_needs_no_more_memory_than_its_tokens() -> None:
    """The library makes an overflow of every part of one text with every part of the other: 666 x 666 here."""
    program = """
import resource
resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30))
from tests.null.test_fast_tokenizer import tokenize
made = tokenize(["good " * 20_000], ["film " * 20_000], max_length=64)
assert made.tokens.lengths.tolist() == [64] and made.truncated_tokens == 40_003 - 64
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr[-300:]


def test_a_prompt_stands_before_the_first_text_alone() -> None:
    made = tokenize(["film"], ["end"], prompt="a good ")
    assert ids(made) == [encode("a good film", "end").ids]


def test_padding_and_truncation_of_the_models_own_file_do_not_count() -> None:
    saved = word_piece_tokenizer()
    saved.enable_padding(length=30)
    saved.enable_truncation(3)
    assert ids(tokenize(["a good film"], max_length=None, backend=saved)) == [encode("a good film", None, None).ids]
