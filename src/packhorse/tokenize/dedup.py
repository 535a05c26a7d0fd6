"""Rows with identical tokens, found exactly."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from packhorse.data import Int64s, Tokens
from packhorse.sequences import MaskedTokens


class Unique(NamedTuple):
    """rows[u]: the first of their kind; inverse[n]: which of them stands for a row, -1 for a row without tokens."""

    rows: Int64s
    inverse: Int64s


def num_duplicates(unique: Unique, row_of: Int64s | None) -> int:
    """How many rows cost nothing, since others stand for all of their sequences. row_of: [sequences] the row of each;
    None: sequence i is row i."""
    has_tokens = np.flatnonzero(unique.inverse >= 0)
    if row_of is None:
        return len(has_tokens) - len(unique.rows)
    return len(np.unique(row_of[has_tokens])) - len(np.unique(row_of[unique.rows]))


def all_rows(tokens: Tokens) -> Unique:
    """Every row that has tokens stands for itself."""
    has_tokens = tokens.lengths > 0
    rows = np.flatnonzero(has_tokens)
    inverse = np.full(tokens.num_rows, -1, np.int64)
    inverse[rows] = np.arange(len(rows))
    return Unique(rows, inverse)


def unique_rows(tokens: Tokens) -> Unique:
    """Rows with equal ids, type ids and targets share one representative, the first.

    A 64-bit polynomial over fixed random weights proposes, a comparison token by token decides.
    """
    if isinstance(tokens, MaskedTokens):
        return _unique_masked(tokens)
    every = all_rows(tokens)
    _, first, group = np.unique(_hashes(tokens)[every.rows], return_index=True, return_inverse=True)
    stands_for = every.rows[first][group]
    collided = ~_equal(tokens, every.rows, stands_for)
    stands_for[collided] = every.rows[collided]
    rows, inverse = np.unique(stands_for, return_inverse=True)
    every.inverse[every.rows] = inverse
    return Unique(rows, every.inverse)


def _unique_masked(tokens: MaskedTokens) -> Unique:
    """Equal are those with the same place masked in equal sequences."""
    longest = int(tokens.bare.lengths.max(initial=1))
    keys = unique_rows(tokens.bare).inverse[tokens.of] * longest + tokens.places
    _, first, group = np.unique(keys, return_index=True, return_inverse=True)
    rows, inverse = np.unique(first[group], return_inverse=True)
    return Unique(rows, inverse)


def _hashes(tokens: Tokens) -> np.ndarray:
    """[n] uint64, modulo 2**64."""
    lengths = tokens.lengths
    weights = np.random.default_rng(0x9E3779B9).integers(
        1, 1 << 63, int(lengths.max(initial=0)) + 1, np.uint64
    ) | np.uint64(1)
    position = np.arange(len(tokens.ids)) - np.repeat(tokens.offsets[:-1], lengths)
    terms = (tokens.ids.astype(np.uint64) + np.uint64(1)) * weights[position]
    for shift, others in enumerate((tokens.type_ids, tokens.targets), 1):
        if others is not None:
            terms += others.astype(np.uint64) * np.roll(weights, shift)[position]
    sums = np.zeros(len(terms) + 1, np.uint64)
    np.cumsum(terms, out=sums[1:])
    return sums[tokens.offsets[1:]] - sums[tokens.offsets[:-1]]


def _equal(tokens: Tokens, rows: Int64s, others: Int64s) -> np.ndarray:
    """[len(rows)] whether a row's tokens are those of its counterpart."""
    same = tokens.lengths[rows] == tokens.lengths[others]
    pairs = np.flatnonzero(same & (rows != others))
    mine, theirs = tokens.take(rows[pairs]), tokens.take(others[pairs])
    differs = mine.ids != theirs.ids
    for one, other in ((mine.type_ids, theirs.type_ids), (mine.targets, theirs.targets)):
        if one is not None and other is not None:
            differs |= one != other
    counts = np.concatenate([[0], np.cumsum(differs)])
    same[pairs] = counts[mine.offsets[1:]] == counts[mine.offsets[:-1]]
    return same
