"""Texts to Tokens: raw tokens of an encoder, cut to a length and set between the special tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from packhorse.data import RowError, Tokens, offsets_of
from packhorse.errors import UsageError
from packhorse.sequences import Tokenized
from packhorse.tokenize.encoder import Difference, Encoder, HfEncoder
from packhorse.tokenize.huge import MARGIN_TOKENS, TokenizeSettings, heads, too_long
from packhorse.tokenize.truncate import assemble, bare_layout, find_layout, kept_lengths

NO_DIFFERENCE = Difference("", 0, "", "")


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

    def tokenize(self, texts: Sequence[Any], pairs: Sequence[Any] | None) -> Tokenized:
        """One row a text (and its pair). None, or a text that cannot be done, is a row in error, without tokens.

        Raises UsageError where the maximum length leaves no room for the special tokens.
        """
        columns = [texts] if pairs is None else [texts, pairs]
        layout, room = self._layouts[len(columns)], self._room(len(columns))
        nulls = {i: RowError("null_text", "the text is null") for c in columns for i in _null_rows(c)}
        todo = [i for i in range(len(texts)) if i not in nulls]
        texts_of, cuts = zip(*[heads(_texts(column, todo), self._settings) for column in columns], strict=True)
        if self._settings.prompt:
            texts_of = ([self._settings.prompt + text for text in texts_of[0]], *texts_of[1:])
        before = self._encoder.difference
        rows = self._encoder.encode(list(texts_of))
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
        return Retokenized(*values, difference=difference._replace(row=todo[difference.row]))

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
        errors |= {todo[i]: too_long(self._settings) for i in np.flatnonzero(is_cut_wrong)}
        empty = np.flatnonzero((tokens.lengths == 0) & ~is_cut_wrong)
        errors |= {todo[i]: RowError("no_tokens", "the tokenizer makes no token of this text") for i in empty}
        if is_cut_wrong.any():
            tokens = tokens.where(np.repeat(~is_cut_wrong, tokens.lengths), np.where(is_cut_wrong, 0, tokens.lengths))
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


def _null_rows(texts: Sequence[str | None]) -> list[int]:
    return [i for i, text in enumerate(texts) if text is None] if None in texts else []


def _texts(texts: Sequence[str | None], rows: list[int]) -> list[str]:
    """Those of the rows, of which none is null."""
    return list(texts) if len(rows) == len(texts) else [texts[i] for i in rows]  # type: ignore[arg-type, misc]
