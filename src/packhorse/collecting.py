"""Values as batches bring them, in any order, put where they belong."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from packhorse.data import Float32s, Int64s, Reduction, Tokens, offsets_of, ranges
from packhorse.sequences import Ragged, Values, num_values


class Collector(Protocol):
    def put(self, rows: Int64s, values: Float32s) -> None: ...  # of a forward of these rows
    def all(self) -> Values: ...


def collector(reduction: Reduction, tokens: Tokens) -> Collector:
    """For the values of sequences of these tokens."""
    return _Dense(reduction, tokens) if reduction.per == "row" else _Ragged(reduction, tokens)


class _Dense:
    """One line a sequence; NaN where none came."""

    def __init__(self, reduction: Reduction, tokens: Tokens) -> None:
        self._values = np.full((tokens.num_rows, reduction.width), np.nan, np.float32)

    def put(self, rows: Int64s, values: Float32s) -> None:
        """Raises RuntimeError where their shape is another."""
        width = self._values.shape[1]
        if values.shape != (len(rows), width):
            raise RuntimeError(f"the backend gave values of shape {values.shape} for {len(rows)} rows of width {width}")
        self._values[rows] = values

    def all(self) -> Float32s:
        """[sequences, width]."""
        return self._values


class _Ragged:
    """As many lines a sequence as the reduction leaves; none where none came."""

    def __init__(self, reduction: Reduction, tokens: Tokens) -> None:
        self._reduction, self._tokens = reduction, tokens
        self._lengths = np.zeros(tokens.num_rows, np.int64)
        self._parts: list[tuple[Int64s, Float32s]] = []

    def put(self, rows: Int64s, values: Float32s) -> None:
        """Raises RuntimeError where their number is another, or they are not one row after the other."""
        width, is_entries = self._reduction.width, self._reduction.per == "entry"
        if values.ndim != 2 or values.shape[1] != width:
            raise RuntimeError(f"the backend gave values of shape {values.shape}, not of width {width}")
        if is_entries and (np.diff(values[:, 0], prepend=0, append=len(rows) - 1) < 0).any():
            raise RuntimeError(f"the backend gave entries that are not of {len(rows)} rows, one after the other")
        counts = num_values(self._reduction, self._tokens.take(rows), values)
        assert counts is not None
        if len(values) != counts.sum():
            raise RuntimeError(
                f"the backend gave values of shape {values.shape} for {len(rows)} rows, which have {counts.sum()}"
            )
        self._lengths[rows] = counts
        self._parts.append((rows, values[:, 1:] if is_entries else values))

    def all(self) -> Ragged:
        offsets = offsets_of(self._lengths)
        width = self._reduction.width - (self._reduction.per == "entry")
        values = np.empty((int(offsets[-1]), width), np.float32)
        for rows, part in self._parts:
            values[ranges(offsets[rows], self._lengths[rows])] = part
        self._parts = []
        return Ragged(values, offsets)
