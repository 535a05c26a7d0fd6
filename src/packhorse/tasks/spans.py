"""Spans of tokens by the logits of their first and last token, of many windows at once."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from packhorse.data import Bools, Float32s, Int64s, offsets_of

UInt64s = npt.NDArray[np.uint64]

CHUNK_VALUES = 1 << 18  # numbers of one matrix: 2 MiB of keys, which stay in the caches
LOW = np.uint64(0xFFFFFFFF)


class Spans(NamedTuple):
    """M spans, those of a window together, the best first."""

    window: Int64s  # [M] ascending
    first: Int64s  # [M] number of the first token among all tokens
    last: Int64s  # [M]
    score: Float32s  # [M]


def probabilities(logits: Float32s, is_candidate: Bools, offsets: Int64s) -> Float32s:
    """[T] softmax of each window over its candidates; 0 for all other tokens. offsets: [W + 1] of the windows, each of
    which has a candidate."""
    where = np.flatnonzero(is_candidate)
    bounds = np.searchsorted(where, offsets)
    starts, lengths = bounds[:-1], np.diff(bounds)
    chosen = logits[where]
    powers = np.exp(chosen - np.repeat(np.maximum.reduceat(chosen, starts), lengths))
    made = np.zeros(len(logits), np.float32)
    made[where] = powers / np.repeat(np.add.reduceat(powers, starts), lengths)
    return made


def best_spans(start: Float32s, end: Float32s, begins: Int64s, lengths: Int64s, most: int, count: int) -> Spans:
    """The `count` best spans of each window, fewer where it has not as many; score: start * end of its tokens.

    start, end: [T] probabilities. A span lies within the tokens begins[w], ... of a window, lengths[w] > 0 of them, and
    has at most `most`. Of equal scores the one that begins first, then the shorter one. As the maximum over a matrix of
    all pairs would give them, without it: the best spans begin at the tokens whose best span is best.
    """
    made = [
        _of_chunk(start, end, begins, lengths, windows, most, count) for windows in _chunks(lengths, most, count)
    ]  # fmt: skip
    if not made:
        nothing = np.empty(0, np.int64)
        return Spans(nothing, nothing, nothing, np.empty(0, np.float32))
    joined = Spans(*(np.concatenate(values) for values in zip(*made, strict=True)))
    order = np.argsort(joined.window, kind="stable")
    return Spans(joined.window[order], joined.first[order], joined.last[order], joined.score[order])


def _chunks(lengths: Int64s, most: int, count: int) -> Iterator[Int64s]:
    """Windows of about one length together."""
    order = np.argsort(lengths, kind="stable")[::-1]
    while len(order):
        longest = int(lengths[order[0]])
        size = max(longest, min(count, longest) * min(most, longest))
        rows = max(CHUNK_VALUES // size, 1)
        yield order[:rows]
        order = order[rows:]


def _of_chunk(
    start: Float32s, end: Float32s, begins: Int64s, lengths: Int64s, windows: Int64s, most: int, count: int
) -> Spans:
    starts, ends = (_matrix(values, begins[windows], lengths[windows]) for values in (start, end))
    longest = starts.shape[1]
    most = min(most, longest)
    is_token = np.arange(longest) < lengths[windows, None]
    best = starts * _largest_ahead(ends, most)
    first, _ = _places(_largest(_keys(best, is_token), count))
    first = np.sort(first, axis=1)  # so that equal scores come in the order of their tokens; -1: none
    at = np.maximum(first, 0)[:, :, None] + np.arange(most)
    is_span = (at < lengths[windows, None, None]) & (first >= 0)[:, :, None]
    flat = (np.arange(len(windows))[:, None, None] * longest + np.minimum(at, longest - 1)).reshape(len(windows), -1)
    scores = ends.ravel()[flat] * np.repeat(np.take_along_axis(starts, np.maximum(first, 0), 1), most, axis=1)
    place, score = _places(_largest(_keys(scores, is_span.reshape(scores.shape)), count))
    row, column = np.nonzero(place >= 0)
    chosen = place[row, column]
    token = begins[windows[row]] + first[row, chosen // most]
    return Spans(windows[row], token, token + chosen % most, score[row, column])


def _matrix(values: Float32s, begins: Int64s, lengths: Int64s) -> Float32s:
    """[n, longest] the values of each window; -1 behind them."""
    made = np.full((len(begins), int(lengths.max())), -1, np.float32)
    where = np.repeat(begins - offsets_of(lengths)[:-1], lengths) + np.arange(int(lengths.sum()))
    made[np.arange(made.shape[1]) < lengths[:, None]] = values[where]
    return made


def _largest_ahead(values: Float32s, most: int) -> Float32s:
    """[n, C] the largest of a value and the `most - 1` behind it."""
    made, width = values.copy(), 1
    while width < most:
        step = min(width, most - width)
        np.maximum(made[:, :-step], made[:, step:], out=made[:, :-step])
        width += step
    return made


def _keys(scores: Float32s, is_there: Bools) -> UInt64s:
    """[n, C] numbers of the order of the scores, which are not negative, the first of equal ones largest; 0: none."""
    keys = np.ascontiguousarray(scores).view(np.uint32).astype(np.uint64)
    keys <<= np.uint64(32)
    keys |= LOW - np.arange(scores.shape[1], dtype=np.uint64)
    keys *= is_there
    return keys


def _largest(keys: UInt64s, count: int) -> UInt64s:
    """[n, up to count] falling."""
    rest = keys.shape[1] - count
    if rest > 0:
        keys = np.partition(keys, rest, axis=1)[:, rest:]
    return np.sort(keys, axis=1)[:, ::-1]


def _places(keys: UInt64s) -> tuple[Int64s, Float32s]:
    """The columns that keys were made of, -1: none, and their scores."""
    place = np.where(keys > 0, (LOW - (keys & LOW)).astype(np.int64), -1)
    return place, (keys >> np.uint64(32)).astype(np.uint32).view(np.float32)
