"""Sequences with mask tokens: those that texts bring, and a sequence once for each of its tokens."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from packhorse.data import Bools, Int32s, Int64s, RowError, Tokens
from packhorse.sequences import MaskedTokens
from packhorse.tokenize.parts import Parts

NO_MASK = RowError("no_mask_token", "the text has no mask token")
MASK_CUT = RowError("no_mask_token", "the text is too long, and the part of it that is kept has no mask token")


def without_mask(tokens: Tokens, parts: Parts, mask_id: int) -> Mapping[int, RowError]:
    """By row, where none of its sequences has a mask token."""
    sequence_of = np.repeat(np.arange(tokens.num_rows), tokens.lengths)
    has_mask = np.unique(parts.row_of[sequence_of[tokens.ids == mask_id]])
    return {int(i): MASK_CUT if parts.lost[i] else NO_MASK for i in np.setdiff1d(parts.row_of, has_mask)}


def each_masked(
    tokens: Tokens, parts: Parts, numbers: Int32s, first: int, stride: int, mask_id: int
) -> tuple[MaskedTokens, Parts]:
    """Each sequence once for each token of its last text. numbers: [T] of raw tokens, counted over all texts; first:
    the first of the last text; special tokens have smaller ones.

    Of the `stride` tokens that two windows share, the first half is masked in the one before, the second in the one
    behind: each then has a quarter of the shared tokens or more on either side.
    """
    places = np.flatnonzero(numbers >= first)
    of = np.repeat(np.arange(tokens.num_rows), tokens.lengths)[places]
    kept = _is_own(parts, of, stride)
    places, of = places[kept], of[kept]
    made = MaskedTokens(tokens, of, places - tokens.offsets[of], mask_id)
    starts, lengths = ([values[of] for values in texts] for texts in (parts.starts, parts.lengths))
    return made, parts._replace(row_of=parts.row_of[of], starts=starts, lengths=lengths)


def _is_own(parts: Parts, of: Int64s, stride: int) -> Bools:
    """[N] whether a token of its sequence's last text is masked in this window. of: [N] its sequence, ascending."""
    lengths, half = parts.lengths[-1], stride // 2
    is_next = np.concatenate([[False], parts.row_of[1:] == parts.row_of[:-1]])  # the same row's next window
    low = np.where(is_next, half, 0)
    high = lengths - np.where(np.append(is_next[1:], False), stride - half, 0)
    rank = np.arange(len(of)) - np.searchsorted(of, of)
    is_own: Bools = (rank >= low[of]) & (rank < high[of])
    return is_own
