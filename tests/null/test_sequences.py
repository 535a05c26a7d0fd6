"""Windows over long texts and texts with labels, against the tokenizers library's own truncation and overflow."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from packhorse.errors import UsageError
from packhorse.sequences import Sequencing, Tokenized
from packhorse.tokenize.huge import TokenizeSettings
from packhorse.tokenize.parts import cut_parts, label_parts, whole_parts, window_parts
from packhorse.tokenize.sequencing import SequenceTokenizer
from tests.models import WORDS, word_piece_tokenizer

SPECIAL, SPECIAL_OF_PAIR = 2, 3
lengths = st.integers(0, 40)


@pytest.fixture(scope="module")
def backend() -> Tokenizer:
    return word_piece_tokenizer()


def text_of(num_tokens: int, seed: int = 0) -> str:
    """As many words, each a token."""
    return " ".join(np.random.default_rng(seed).choice(WORDS, num_tokens))


def tokenized(
    backend: Tokenizer, sequencing: Sequencing, max_length: int | None, texts: Sequence[object],
    pairs: Sequence[object] | None = None, side: str = "right",
) -> Tokenized:  # fmt: skip
    settings = TokenizeSettings(max_length=max_length, with_type_ids=True, truncation_side=side)
    tokenizer = SequenceTokenizer(Tokenizer.from_str(backend.to_str()), settings, sequencing)
    made = tokenizer.tokenize(texts, pairs)
    tokenizer.close()
    return made


def sequences(made: Tokenized) -> list[list[int]]:
    ids, offsets = made.tokens.ids.tolist(), made.tokens.offsets
    return [ids[a:b] for a, b in itertools.pairwise(offsets)]


def overflowing(backend: Tokenizer, texts: tuple[str, ...], max_length: int, stride: int) -> Iterator[list[int]]:
    """The library's windows, over the last of the texts."""
    library = Tokenizer.from_str(backend.to_str())
    strategy = "only_second" if len(texts) == 2 else "longest_first"
    library.enable_truncation(max_length, stride=stride, strategy=strategy)
    made = library.encode(*texts)
    yield made.ids
    yield from (part.ids for part in made.overflowing)


@settings(max_examples=40)
@given(num_tokens=lengths, max_length=st.integers(4, 20), stride=st.integers(0, 12))
def test_windows_are_those_of_the_library(backend: Tokenizer, num_tokens: int, max_length: int, stride: int) -> None:
    sequencing, text = Sequencing(long="windows", stride=stride), text_of(num_tokens)
    if stride >= max_length - SPECIAL:
        with pytest.raises(UsageError, match=f"--stride {stride}: a window has {max_length - SPECIAL} tokens"):
            tokenized(backend, sequencing, max_length, [text])
        return
    made = tokenized(backend, sequencing, max_length, [None, text, text])
    wanted = list(overflowing(backend, (text,), max_length, stride))
    assert sequences(made) == wanted * 2
    assert made.row_of is not None and made.row_of.tolist() == [1] * len(wanted) + [2] * len(wanted)
    assert list(made.errors) == [0]
    assert made.truncated_rows == made.truncated_tokens == 0


@settings(max_examples=40)
@given(first=st.integers(0, 12), second=lengths, max_length=st.integers(6, 24), stride=st.integers(0, 2))
def test_windows_over_the_second_text_of_a_pair(
    backend: Tokenizer, first: int, second: int, max_length: int, stride: int
) -> None:
    texts = text_of(first), text_of(second, 1)
    made = tokenized(backend, Sequencing(long="windows", stride=stride), max_length, [texts[0]], [texts[1]])
    room = max_length - SPECIAL_OF_PAIR - first
    if second > room and room <= stride:
        assert made.errors[0].kind == "text_too_long" and made.tokens.num_rows == 0
    else:
        assert sequences(made) == list(overflowing(backend, texts, max_length, stride))


@settings(max_examples=40)
@given(text=lengths, labels=st.lists(st.integers(1, 4), min_size=1, max_size=4), max_length=st.integers(8, 20))
def test_a_text_with_each_label_is_cut_as_only_first(
    backend: Tokenizer, text: int, labels: list[int], max_length: int
) -> None:
    words = [text_of(n, i) for i, n in enumerate(labels)]
    sequencing = Sequencing("labels", cut="first", template="the {}")
    made = tokenized(backend, sequencing, max_length, [text_of(text)], [words])
    library = Tokenizer.from_str(backend.to_str())
    room = max_length - SPECIAL_OF_PAIR - max(labels) - 1
    if room < 1:  # the library refuses what leaves no token
        return
    library.enable_truncation(max_length, strategy="only_first")
    encoded = [library.encode(text_of(text), f"the {word}") for word in words]
    assert sequences(made) == [e.ids for e in encoded]
    assert made.tokens.type_ids is not None
    assert made.tokens.type_ids.tolist() == [i for e in encoded for i in e.type_ids]
    assert made.truncated_tokens == max(text - room, 0)  # those of the longest label
    assert made.labels == [words]


def test_labels_are_lists_or_texts_with_commas(backend: Tokenizer) -> None:
    sequencing = Sequencing("labels", cut="first", labels=("ignored",))
    given_labels = ["a, b ,, c", ["a", "b", "c"], "", [], None, ["a", None]]
    made = tokenized(backend, sequencing, 20, ["x"] * 6, given_labels)
    assert {i: error.kind for i, error in made.errors.items()} == {
        2: "no_labels", 3: "no_labels", 4: "no_labels", 5: "null_label"
    }  # fmt: skip
    assert sequences(made)[:3] == sequences(made)[3:]
    assert [list(labels) for labels in made.labels[:2]] == [["a", "b", "c"]] * 2


def test_each_hypothesis_is_tokenized_once(backend: Tokenizer) -> None:
    seen: list[str] = []

    class Recording:
        difference = None

        def encode(self, columns: list[list[str]]) -> list[object]:
            seen.extend(columns[0])
            return inner.encode(columns)

        def close(self) -> None:
            inner.close()

    from packhorse.tokenize.encoder import HfEncoder

    inner = HfEncoder(Tokenizer.from_str(backend.to_str()), 1)
    sequencing = Sequencing("labels", cut="first", labels=("good", "bad", "dull"))
    tokenizer = SequenceTokenizer(
        Tokenizer.from_str(backend.to_str()),
        TokenizeSettings(max_length=20),
        sequencing,
        Recording(),  # type: ignore[arg-type]
    )
    made = tokenizer.tokenize(["a film", "the end", "a film"], None)
    tokenizer.close()
    assert seen == ["a film", "the end", "a film", "good", "bad", "dull"]
    assert made.tokens.num_rows == 9


def test_without_a_limit_windows_are_whole_texts() -> None:
    parts = window_parts([np.array([3, 0, 700])], None, 5)
    assert parts.row_of.tolist() == [0, 1, 2]
    assert parts.lengths[0].tolist() == [3, 0, 700]


@settings(max_examples=40)
@given(first=lengths, second=lengths, room=st.integers(2, 30), gives=st.sampled_from(["first", "second"]))
def test_one_text_gives_way_to_the_other(first: int, second: int, room: int, gives: str) -> None:
    texts = [np.array([first]), np.array([second])]
    parts = cut_parts(texts, room, gives, "left")
    total = first + second
    if gives == "second" and first >= room and total > room:  # the first is what the second is read for
        assert list(parts.refused) == [0] and len(parts.row_of) == 0
        return
    kept = [int(n[0]) for n in parts.lengths]
    assert sum(kept) <= room
    assert parts.lost[0] == total - sum(kept)
    if total <= room:
        assert kept == [first, second]
    else:
        assert sum(kept) == room
        assert min(kept) >= 1 or min(first, second) == 0
        other = 1 if gives == "first" else 0
        assert kept[other] == min((first, second)[other], room - 1)
    assert [int(s[0]) for s in parts.starts] == [first - kept[0], second - kept[1]]  # cut on the left


def test_what_would_be_cut_is_refused_on_request() -> None:
    whole = whole_parts([np.array([4, 9, 5])], 5)
    assert whole.row_of.tolist() == [0, 2]
    assert list(whole.refused) == [1]
    text, labels, counts = np.array([4, 9]), np.array([1, 3, 1, 1]), np.array([2, 2])
    parts = label_parts(text, labels, counts, 7, "right").without_cut()
    assert parts.row_of.tolist() == [0, 0]
    assert list(parts.refused) == [1]
    assert parts.lost.tolist() == [0, 0]
