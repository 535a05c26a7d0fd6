"""Tokens of prompts: without special tokens, and within a limit, against the tokenizers library."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from packhorse.data import RowError
from packhorse.errors import UsageError
from packhorse.sequences import Tokenized
from packhorse.tokenize.fast import FastTokenizer, Retokenized
from packhorse.tokenize.huge import TokenizeSettings
from packhorse.tokenize.limited import LimitedTokenizer
from tests.models import WORDS, word_piece_tokenizer
from tests.null.test_quick_tokenizers import CORPUS, backend, encoder, every_case
from tests.null.test_tokens import lists


def tokenize(texts: list[str], pairs: list[str] | None = None, limit: int | None = None, **more: Any) -> Tokenized:
    tokenizer: Any = FastTokenizer(word_piece_tokenizer(), TokenizeSettings(**{"max_length": None, **more}))
    try:
        limited = tokenizer if limit is None else LimitedTokenizer(tokenizer, limit, 4)
        made: Tokenized = limited.tokenize(texts, pairs)
        return made
    finally:
        tokenizer.close()


SOME = st.lists(st.sampled_from([*WORDS, "[SEP]", "[CLS]", " [MASK]x", "é"]), min_size=1, max_size=12).map(" ".join)


@given(st.lists(st.tuples(SOME, SOME), min_size=1, max_size=6), st.booleans())
def test_without_special_tokens_there_are_only_those_of_the_text(rows: list[tuple[str, str]], pairs: bool) -> None:
    backend: Tokenizer = word_piece_tokenizer()
    columns = [list(column) for column in zip(*rows, strict=True)][: 1 + pairs]
    made = tokenize(columns[0], columns[1] if pairs else None, with_special_tokens=False, with_type_ids=True)
    expected = [backend.encode(*row[: 1 + pairs], add_special_tokens=False) for row in rows]
    assert lists(made.tokens.ids, made.tokens.offsets) == [e.ids for e in expected]
    assert made.tokens.type_ids is not None
    assert lists(made.tokens.type_ids, made.tokens.offsets) == [e.type_ids for e in expected]


@given(st.lists(SOME, min_size=1, max_size=6), st.integers(1, 8))
def test_without_special_tokens_a_text_is_cut_to_the_whole_length(texts: list[str], max_length: int) -> None:
    backend: Tokenizer = word_piece_tokenizer()
    made = tokenize(texts, with_special_tokens=False, max_length=max_length)
    whole = [backend.encode(text, add_special_tokens=False).ids for text in texts]
    assert lists(made.tokens.ids, made.tokens.offsets) == [ids[:max_length] for ids in whole]
    assert made.truncated_tokens == sum(max(len(ids) - max_length, 0) for ids in whole)


@every_case
def test_fast_packages_give_the_tokens_of_the_library_without_special_tokens(package: str, kind: str) -> None:
    """A package stays in use though half of the prompts, those with special tokens in them, go to the library."""
    special = next(iter(backend(kind).get_added_tokens_decoder().values())).content
    texts = [*CORPUS, *(f"{special}user\n{text}{special}" for text in CORPUS)]
    settings = TokenizeSettings(max_length=None, with_special_tokens=False, threads=2)
    made = FastTokenizer(backend(kind), settings, encoder(package, kind)).tokenize(texts, None)
    assert not isinstance(made, Retokenized) and encoder(package, kind).difference is None
    expected = [backend(kind).encode(text, add_special_tokens=False).ids for text in texts]
    assert lists(made.tokens.ids, made.tokens.offsets) == expected


def test_an_empty_prompt_without_special_tokens_has_no_tokens() -> None:
    assert {r: e.kind for r, e in tokenize(["", "good"], with_special_tokens=False).errors.items()} == {0: "no_tokens"}


def test_a_prompt_beyond_the_limit_is_an_error_without_tokens() -> None:
    texts = ["good film", "good " * 1_500, "good film bad end", "good film bad end me"]
    free, made = tokenize(texts, with_type_ids=True), tokenize(texts, limit=10, with_type_ids=True)
    expected = lists(free.tokens.ids, free.tokens.offsets)
    assert lists(made.tokens.ids, made.tokens.offsets) == [expected[0], [], expected[2], []]
    rest = "tokens, and the model takes 10 with 4 to generate; --long truncate cuts it"
    assert made.errors == {i: RowError("prompt_too_long", f"{n} {rest}") for i, n in ((1, "1,502"), (3, "7"))}
    assert made.tokens.type_ids is not None and len(made.tokens.type_ids) == len(made.tokens.ids)
    assert tokenize(texts[:1], limit=10).errors == {}


def test_a_huge_prompt_is_beyond_the_limit_too() -> None:
    made = tokenize(["good film", "good " * 250_000], limit=10)
    words = "more than 1,000,000 characters, and the model takes 10 with 4 to generate; --long truncate cuts it"
    assert made.errors == {1: RowError("prompt_too_long", words)} and made.tokens.lengths.tolist() == [4, 0]


def test_a_limit_that_leaves_no_room_for_a_prompt_is_refused() -> None:
    tokenizer = FastTokenizer(word_piece_tokenizer(), TokenizeSettings(None))
    with pytest.raises(UsageError, match=r"--max-new-tokens 64: .* at most 63"):
        LimitedTokenizer(tokenizer, 64, 64)
    tokenizer.close()
