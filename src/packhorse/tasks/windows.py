"""Long texts read in windows: the values of a row's windows as one result."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from packhorse.config import EngineConfig
from packhorse.data import Bools, Float32s, Float64s, Int64s
from packhorse.sequences import Results, Sequencing

DEFAULT_STRIDE = 0


@dataclass(frozen=True, slots=True)
class Windows:
    """What --long, --stride and --combine ask for."""

    long: str = "truncate"
    stride: int = 0
    combine: str = "mean"

    @classmethod
    def of(cls, settings: EngineConfig) -> Windows:
        long = "truncate" if settings.long == "auto" else settings.long
        return cls(long, settings.stride or DEFAULT_STRIDE, settings.combine)

    @property
    def is_used(self) -> bool:
        return self.long == "windows"

    @property
    def keeps_all(self) -> bool:
        """Whether a row has a list of results, one a window."""
        return self.is_used and self.combine == "all"

    def sequencing(self) -> Sequencing:
        """Nothing out of the ordinary where texts are cut; rows too long for --long error are found later."""
        return Sequencing(long="windows", stride=self.stride) if self.is_used else Sequencing()

    def of_rows(self, results: Results, by_tokens: bool = False) -> Float32s:
        """[rows, width]: the mean of a row's windows, by_tokens weighted by how many each has; or the largest value of
        each column, or the first window's. The value of a row's only window stays as it is, and rows that are not
        valid are 0."""
        values = results.dense()
        if results.is_one_each:
            values[~results.is_valid] = 0
            return values
        firsts = results.firsts()
        has_any = np.diff(firsts) > 0
        starts = firsts[:-1][has_any]  # of rows that have windows; the next one's is the end of each
        rows = np.zeros((results.num_rows, values.shape[1]), np.float32)
        if len(starts):
            weights = results.tokenized.tokens.lengths if by_tokens else np.ones(len(values), np.int64)
            rows[has_any] = self._combined(values, starts, weights.astype(np.float64)[:, None])
        rows[~results.is_valid] = 0
        return rows

    def _combined(self, values: Float32s, starts: Int64s, weights: Float64s) -> np.ndarray:
        """[rows with windows, width]. weights: [windows, 1]"""
        if self.combine == "first":
            return values[starts]
        if self.combine == "max":
            largest: np.ndarray = np.maximum.reduceat(values, starts)
            return largest
        mean: np.ndarray = np.add.reduceat(values * weights, starts) / np.add.reduceat(weights, starts)
        return mean

    def lists(self, results: Results, columns: Callable[[Float32s], list[pa.Array]]) -> list[pa.Array]:
        """Columns of lists, a list a row: those that `columns` makes of all windows of valid rows."""
        counts = np.diff(results.firsts())
        is_kept = np.repeat(results.is_valid, counts)
        offsets = pa.array(np.concatenate([[0], np.cumsum(counts * results.is_valid)]), pa.int32())
        mask = pa.array(~results.is_valid)
        return [pa.ListArray.from_arrays(offsets, made, mask=mask) for made in columns(results.dense()[is_kept])]


def has_several(results: Results) -> Bools:
    """[rows] whether a row has more than one window."""
    several: Bools = np.diff(results.firsts()) > 1
    return several


def activated(logits: Float32s, activation: str) -> Float32s:
    """[n, C] scores, as the device makes them of logits."""
    if activation == "softmax":
        powers = np.exp(logits - logits.max(1, keepdims=True))
        return (powers / powers.sum(1, keepdims=True)).astype(np.float32)
    return sigmoid(logits) if activation == "sigmoid" else logits


def sigmoid(logits: Float32s) -> Float32s:
    exponents = np.minimum(-logits.astype(np.float64), 700)  # beyond, exp overflows; in float32 the result is 0 by then
    return (1 / (1 + np.exp(exponents))).astype(np.float32)
