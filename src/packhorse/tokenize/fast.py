"""Texts to Tokens: raw tokens of an encoder, cut to a length and set between the special tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from packhorse.data import RowError, Tokenized, Tokens, offsets_of
from packhorse.errors import UsageError
from packhorse.tokenize.encoder import Difference, Encoder, HfEncoder
from packhorse.tokenize.truncate import assemble, bare_layout, find_layout, kept_lengths

# A text is cut here before tokenizing: 10 MB take 13 s and 1.5 GB, and a model reads the first tokens alone.
MIN_TEXT_CHARS = 200_000
CHARS_PER_TOKEN = 32
MAX_UNTRUNCATED_CHARS = 1_000_000
# Tokens that a cut text must make beyond those that can be kept, so that the cut cannot have changed them.
MARGIN_TOKENS = 8
NO_DIFFERENCE = Difference("", 0, "", "")


@dataclass(frozen=True, slots=True)
class TokenizeSettings:
    """max_length in tokens, special ones included; None: never truncated.

    with_special_tokens: whether those of the tokenizer's post-processor are put around a text. Special tokens that
    stand in a text are read as what they are in either case.
    """

    max_length: int | None
    prompt: str = ""
    truncation_side: str = "right"
    with_type_ids: bool = False
    threads: int = 1
    with_special_tokens: bool = True


@dataclass(frozen=True, slots=True)
class Retokenized(Tokenized):
    """Rows for which the reference took the place of a faster package, from here on."""

    difference: Difference = NO_DIFFERENCE  # its row is one of these


class FastTokenizer:
    """Texts to Tokens, by an encoder of the backend's raw tokens; by Hugging Face's own where none is given."""

    def __init__(self, backend: Any, settings: TokenizeSettings, encoder: Encoder | None = None) -> None:
        backend.no_padding()
        backend.no_truncation()
        self._settings = settings
        has_special = settings.with_special_tokens
        self._layouts = {n: find_layout(backend, n == 2) if has_special else bare_layout(n) for n in (1, 2)}
        self._encoder: Encoder = encoder or HfEncoder(backend, settings.threads)

    def close(self) -> None:
        self._encoder.close()

    def is_of(self, encoder: Encoder | None) -> bool:
        """Whether it is this one that makes the tokens."""
        return self._encoder is encoder

    def tokenize(self, texts: Sequence[str | None], pairs: Sequence[str | None] | None) -> Tokenized:
        """One row a text (and its pair). None, or a text that cannot be done, is a row in error, without tokens.

        Raises UsageError where the maximum length leaves no room for the special tokens.
        """
        columns = [texts] if pairs is None else [texts, pairs]
        layout, room = self._layouts[len(columns)], self._room(len(columns))
        nulls = {i: RowError("null_text", "the text is null") for c in columns for i in _null_rows(c)}
        todo = [i for i in range(len(texts)) if i not in nulls]
        heads, cuts = zip(*[self._heads(_texts(column, todo)) for column in columns], strict=True)
        if self._settings.prompt:
            heads = ([self._settings.prompt + text for text in heads[0]], *heads[1:])
        before = self._encoder.difference
        rows = self._encoder.encode(list(heads))
        is_cut_wrong = np.zeros(len(todo), np.bool_)
        for row, cut in zip(rows, cuts, strict=True):
            for i, is_hard in cut.items():
                is_cut_wrong[i] |= room is None or row.lengths[i] < room * (1 + is_hard) + MARGIN_TOKENS
        kept = kept_lengths([row.lengths for row in rows], room)
        tokens = assemble(rows, kept, layout, self._settings.with_type_ids, self._settings.truncation_side)
        lost = np.sum([row.lengths for row in rows], axis=0) - np.sum(kept, axis=0)
        made = self._tokenized(tokens, lost, is_cut_wrong, todo, nulls, len(texts))
        difference = self._encoder.difference
        if difference is before or difference is None:
            return made
        values = (made.tokens, made.errors, made.truncated_rows, made.truncated_tokens)
        return Retokenized(*values, difference._replace(row=todo[difference.row]))

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


def _null_rows(texts: Sequence[str | None]) -> list[int]:
    return [i for i, text in enumerate(texts) if text is None] if None in texts else []


def _texts(texts: Sequence[str | None], rows: list[int]) -> list[str]:
    """Those of the rows, of which none is null."""
    return list(texts) if len(rows) == len(texts) else [texts[i] for i in rows]  # type: ignore[arg-type, misc]


def _head(text: str, limit: int) -> tuple[str, bool]:
    """The text up to the last white space before the limit, or (True) up to the limit where none is near."""
    cut = max(text.rfind(space, limit - limit // 20, limit) for space in " \n\t")
    return (text[:cut], False) if cut >= 0 else (text[:limit], True)


def _tail(text: str, limit: int) -> tuple[str, bool]:
    """The same from the other end."""
    begin = len(text) - limit
    found = [at for at in (text.find(space, begin, begin + limit // 20) for space in " \n\t") if at >= 0]
    return (text[min(found) :], False) if found else (text[begin:], True)
