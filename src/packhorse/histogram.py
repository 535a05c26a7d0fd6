"""Rows by their length in tokens: buckets that double in two steps, and what each of them held. No torch."""

from __future__ import annotations

import numpy as np

from packhorse.data import Int64s

# The last length of each bucket; what is longer goes into one more.
LAST_LENGTHS = (
    4, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1_024, 1_536, 2_048, 3_072, 4_096, 6_144, 8_192,
)  # fmt: skip
_FIRST_LENGTHS = (1, *(last + 1 for last in LAST_LENGTHS))
BUCKETS = (*(f"{a}-{b}" for a, b in zip(_FIRST_LENGTHS[:-1], LAST_LENGTHS, strict=True)), f"{_FIRST_LENGTHS[-1]}+")


def by_length(lengths: Int64s, values: Int64s | None = None) -> dict[str, int]:
    """The sum of `values` in each bucket that has rows, shortest first; without values, its rows.

    lengths: [n] tokens of each row; rows of length 0 (in error) are in no bucket. values: [n], whole numbers.
    """
    bucket = np.searchsorted(np.array(LAST_LENGTHS), lengths, side="left")
    has_tokens = lengths > 0
    sums = np.zeros(len(BUCKETS), np.int64)
    np.add.at(sums, bucket[has_tokens], 1 if values is None else values[has_tokens])
    rows = np.bincount(bucket[has_tokens], minlength=len(BUCKETS))
    return {BUCKETS[i]: int(sums[i]) for i in np.flatnonzero(rows)}


def shares(lengths: Int64s, computed_tokens: int, is_packed: bool) -> Int64s:
    """[n] a batch's computed tokens as its rows' own; they add up to it exactly.

    In a padded batch every row takes up the same; in a packed one (which may have padding at its end, or at the end of
    each row) a row takes up in proportion to its length. What does not divide goes to the first rows.
    """
    weights = lengths if is_packed else np.ones_like(lengths)
    own: Int64s = computed_tokens * weights // max(int(weights.sum()), 1)
    own[: computed_tokens - int(own.sum())] += 1  # fewer than n are left over
    return own
