"""Tokenizing with the Rust tokenizers of Hugging Face, into flat ids."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np

from packhorse.data import RowError, Tokenized, Tokens, offsets_of
from packhorse.errors import UsageError
from packhorse.tokenize.truncate import Raw, assemble, find_layout, kept_lengths

CHUNK_ROWS = 500  # small pieces stay in the caches: 78,000 rows/s on 2 cores, 71,000 with 2,000
CHUNK_CHARS = 1_000_000
# A text is cut here before tokenizing: 10 MB take 13 s and 1.5 GB, and a model reads the first tokens alone.
MIN_TEXT_CHARS = 200_000
CHARS_PER_TOKEN = 32
MAX_UNTRUNCATED_CHARS = 1_000_000
# Tokens that a cut text must make beyond those that can be kept, so that the cut cannot have changed them.
MARGIN_TOKENS = 8


@dataclass(frozen=True, slots=True)
class TokenizeSettings:
    """max_length in tokens, special ones included; None: never truncated."""

    max_length: int | None
    prompt: str = ""
    truncation_side: str = "right"
    with_type_ids: bool = False
    threads: int = 1


class FastTokenizer:
    """Texts to Tokens, over threads.

    Each thread works on its own copy of the tokenizer (a shared one raises "Already borrowed"), and the library's
    own thread pool is switched off for this process by TOKENIZERS_PARALLELISM=false unless the variable is set:
    our threads overlap the Rust part of one piece with the Python part of another, 1.25x the rate on 2 cores.
    """

    def __init__(self, backend: Any, settings: TokenizeSettings) -> None:
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        backend.no_padding()
        backend.no_truncation()
        self._settings = settings
        self._layouts = {num: find_layout(backend, num == 2) for num in (1, 2)}
        self._copies = [type(backend).from_str(backend.to_str()) for _ in range(settings.threads)]
        self._pool = ThreadPoolExecutor(settings.threads, "tokenize")

    def close(self) -> None:
        self._pool.shutdown()

    def tokenize(self, texts: Sequence[str | None], pairs: Sequence[str | None] | None) -> Tokenized:
        """One row a text (and its pair). None, or a text that cannot be done, is a row in error, without tokens.

        Raises UsageError where the maximum length leaves no room for the special tokens.
        """
        columns = [texts] if pairs is None else [texts, pairs]
        layout, room = self._layouts[len(columns)], self._room(len(columns))
        nulls = {i: RowError("null_text", "the text is null") for c in columns for i, t in enumerate(c) if t is None}
        todo = [i for i in range(len(texts)) if i not in nulls]
        rows, is_cut_wrong = [], np.zeros(len(todo), np.bool_)
        for number, column in enumerate(columns):
            heads, cuts = self._heads([column[i] or "" for i in todo])
            rows.append(self._encode([self._settings.prompt + t for t in heads] if not number else heads))
            for i, is_hard in cuts.items():
                is_cut_wrong[i] |= room is None or rows[-1].lengths[i] < room * (1 + is_hard) + MARGIN_TOKENS
        kept = kept_lengths([row.lengths for row in rows], room)
        tokens = assemble(rows, kept, layout, self._settings.with_type_ids, self._settings.truncation_side)
        lost = np.sum([row.lengths for row in rows], axis=0) - np.sum(kept, axis=0)
        return self._tokenized(tokens, lost, is_cut_wrong, todo, nulls, len(texts))

    def _tokenized(
        self,
        tokens: Tokens,
        lost: np.ndarray,
        is_cut_wrong: np.ndarray,
        todo: list[int],
        nulls: dict[int, RowError],
        num_rows: int,
    ) -> Tokenized:
        """The tokens of the rows `todo` in their places among all rows, and the rows in error emptied."""
        errors = dict(nulls)
        errors |= {todo[i]: self._too_long() for i in np.flatnonzero(is_cut_wrong)}
        empty = np.flatnonzero((tokens.lengths == 0) & ~is_cut_wrong)
        errors |= {todo[i]: RowError("no_tokens", "the tokenizer makes no token of this text") for i in empty}
        if is_cut_wrong.any():
            keep = np.repeat(~is_cut_wrong, tokens.lengths)
            lengths = np.where(is_cut_wrong, 0, tokens.lengths)
            type_ids = None if tokens.type_ids is None else tokens.type_ids[keep]
            tokens = Tokens(tokens.ids[keep], offsets_of(lengths), type_ids)
        lengths = np.zeros(num_rows, np.int64)
        lengths[todo] = tokens.lengths
        lost = np.where(is_cut_wrong, 0, lost)
        placed = Tokens(tokens.ids, offsets_of(lengths), tokens.type_ids)
        return Tokenized(placed, errors, int((lost > 0).sum()), int(lost.sum()))

    def _room(self, num_texts: int) -> int | None:
        """Tokens that the texts of a row may have together."""
        if self._settings.max_length is None:
            return None
        special = self._layouts[num_texts].num_special
        if self._settings.max_length < special:
            raise UsageError(
                f"--max-length {self._settings.max_length}: the special tokens of a row alone are {special}"
            )
        return self._settings.max_length - special

    # -- huge texts

    def _max_chars(self) -> int:
        if self._settings.max_length is None:
            return MAX_UNTRUNCATED_CHARS
        return max(MIN_TEXT_CHARS, CHARS_PER_TOKEN * self._settings.max_length)

    def _heads(self, texts: list[str]) -> tuple[list[str], dict[int, bool]]:
        """Texts within the limit; which of them were cut, and (True) not at white space."""
        limit, cuts = self._max_chars(), {}
        for i in [i for i, t in enumerate(texts) if len(t) > limit]:
            cut = _tail if self._settings.truncation_side == "left" else _head
            texts[i], cuts[i] = cut(texts[i], limit)
        return texts, cuts

    def _too_long(self) -> RowError:
        what = f"the text has more than {self._max_chars():,} characters, and "
        if self._settings.max_length is None:
            return RowError("text_too_long", what + "this model has no maximum length; --max-length sets one")
        few = f"the first of them make too few tokens to fill the maximum length of {self._settings.max_length}"
        return RowError("text_too_long", what + few)

    # -- the library

    def _encode(self, texts: list[str]) -> Raw:
        """Raw tokens of all texts, in order."""
        rows = _piece_rows(texts)
        free = list(self._copies)  # as many as threads: pop never fails, and is atomic

        def encode(start: int) -> Raw:
            tokenizer = free.pop()
            try:
                return _encode_piece(tokenizer, texts[start : start + rows])
            finally:
                free.append(tokenizer)

        pieces = list(self._pool.map(encode, range(0, len(texts), rows)))
        if not pieces:
            return Raw(np.empty(0, np.int32), np.empty(0, np.int64))
        return Raw(np.concatenate([p.ids for p in pieces]), np.concatenate([p.lengths for p in pieces]))


def _encode_piece(tokenizer: Any, texts: list[str]) -> Raw:
    ids = [e.ids for e in tokenizer.encode_batch_fast(texts, add_special_tokens=False)]
    lengths = np.fromiter(map(len, ids), np.int64, len(ids))
    return Raw(np.fromiter(chain.from_iterable(ids), np.int32, int(lengths.sum())), lengths)


def _piece_rows(texts: list[str]) -> int:
    """Rows a piece: enough to pay for the hand-over, few enough that threads end together."""
    sample = texts[:: max(len(texts) // 64, 1)]
    return max(min(CHUNK_ROWS, CHUNK_CHARS * len(sample) // max(sum(map(len, sample)), 1)), 8)


def _head(text: str, limit: int) -> tuple[str, bool]:
    """The text up to the last white space before the limit, or (True) up to the limit where none is near."""
    cut = max(text.rfind(space, limit - limit // 20, limit) for space in " \n\t")
    return (text[:cut], False) if cut >= 0 else (text[:limit], True)


def _tail(text: str, limit: int) -> tuple[str, bool]:
    """The same from the other end."""
    begin = len(text) - limit
    found = [at for at in (text.find(space, begin, begin + limit // 20) for space in " \n\t") if at >= 0]
    return (text[min(found) :], False) if found else (text[begin:], True)
