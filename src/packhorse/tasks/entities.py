"""Scores of tokens to entities, as transformers' token-classification pipeline makes them; arithmetic over arrays."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from packhorse.data import Bools, Float32s, Int64s
from packhorse.sequences import Origin

UNCUT = np.iinfo(np.int64).max  # distance to an edge of a window that is one of the text


class Pieces(NamedTuple):
    """Stretches of tokens with a label: tokens, words or entities; [N] in the order of their sequences."""

    first: Int64s  # number of its first token among all
    end: Int64s  # behind its last one
    sequence: Int64s
    label: Int64s
    score: Float32s

    def take(self, which: np.ndarray) -> Pieces:
        return Pieces(*(values[which] for values in self))


class Labels:
    """What names of labels say: B-X begins an entity X, I-X goes on with it; any other X goes on with X."""

    def __init__(self, names: tuple[str, ...]) -> None:
        tags = [name[2:] if name.startswith(("B-", "I-")) else name for name in names]
        shown = [name.split("-", 1)[-1] for name in names]  # as the pipeline has it: MISC-X is shown as X
        self.names, self.groups = names, list(dict.fromkeys(shown))
        self.begins = np.array([name.startswith("B-") for name in names], np.bool_)  # [labels]
        self.tag = np.array([tags.index(tag) for tag in tags], np.int64)  # [labels]
        self.group = np.array([self.groups.index(name) for name in shown], np.int64)  # [labels]


def token_pieces(values: Float32s, numbers: Int64s, sequence: Int64s) -> Pieces:
    """A piece for each token: its best label. values: [T, labels]; numbers: [N] of the tokens that are text's;
    sequence: [N]."""
    best = values.argmax(1)[numbers]
    return Pieces(numbers, numbers + 1, sequence, best, values[numbers, best])


def word_pieces(values: Float32s, numbers: Int64s, sequence: Int64s, is_inside: Bools, how: str) -> Pieces:
    """A piece for each word. is_inside: [N] whether a token goes on with the word before it; how: first: the label of
    its first token, max: of the token with the highest score, average: of the mean scores."""
    begins = ~is_inside
    begins[1:] |= sequence[1:] != sequence[:-1]
    begins[:1] = True
    starts = np.flatnonzero(begins)
    ends = np.append(starts[1:], len(numbers))
    if not len(starts):
        return token_pieces(values, numbers, sequence)
    if how == "average":
        sums = np.add.reduceat(values[numbers], starts)
        scores = (sums / (ends - starts)[:, None]).astype(np.float32)
    else:
        chosen = starts if how == "first" else _highest(values[numbers].max(1), starts, ends)
        scores = values[numbers[chosen]]
    label = scores.argmax(1)
    return Pieces(numbers[starts], numbers[ends - 1] + 1, sequence[starts], label, scores[np.arange(len(label)), label])


def _highest(scores: Float32s, starts: Int64s, ends: Int64s) -> Int64s:
    """The first place of each stretch that has its highest score."""
    is_highest = scores == np.repeat(np.maximum.reduceat(scores, starts), ends - starts)
    where = np.flatnonzero(is_highest)
    chosen: Int64s = where[np.searchsorted(where, starts)]
    return chosen


def grouped(pieces: Pieces, labels: Labels) -> tuple[Pieces, Int64s]:
    """Neighbours of one tag as one piece, unless a label begins another; its label is a number of Labels.groups and its
    score the mean. Also [groups + 1] where the pieces of each begin, and the end of all."""
    if not len(pieces.first):
        return pieces, np.zeros(1, np.int64)
    tag = labels.tag[pieces.label]
    begins = labels.begins[pieces.label]
    begins[1:] |= (tag[1:] != tag[:-1]) | (pieces.sequence[1:] != pieces.sequence[:-1])
    begins[0] = True
    bounds = np.append(np.flatnonzero(begins), len(tag))
    starts, lasts = bounds[:-1], bounds[1:] - 1
    score = (np.add.reduceat(pieces.score, starts) / np.diff(bounds)).astype(np.float32)
    group = labels.group[pieces.label[starts]]
    return Pieces(pieces.first[starts], pieces.end[lasts], pieces.sequence[starts], group, score), bounds


def once_each(row: Int64s, sequence: Int64s, place: Int64s) -> Int64s:
    """Of tokens [N] that stand in several windows of their row those that are farthest from where the text was cut;
    ascending by row and place. place: number of the token in its text."""
    edges = np.flatnonzero(np.append(True, sequence[1:] != sequence[:-1]))
    lasts = np.append(edges[1:], len(sequence)) - 1
    ends_row = np.append(row[edges][1:] != row[edges][:-1], True)
    lengths = lasts - edges + 1
    left = place - np.repeat(place[edges], lengths)
    left[np.repeat(place[edges] == 0, lengths)] = UNCUT
    right = np.repeat(place[lasts], lengths) - place
    right[np.repeat(ends_row, lengths)] = UNCUT
    order = np.lexsort((-np.minimum(left, right), place, row))
    is_new = np.append(True, (np.diff(row[order]) != 0) | (np.diff(place[order]) != 0))
    chosen: Int64s = order[is_new]
    return chosen


def without_overlaps(row: Int64s, start: Int64s, end: Int64s, score: Float32s) -> list[int]:
    """Of entities [N] of overlapping windows those that stay, ascending by row and start: of two that overlap the
    longer one; of equally long ones that with the higher score. start, end: characters."""
    kept: list[int] = []
    for i in np.lexsort((start, row)).tolist():
        last = kept[-1] if kept else -1
        if last < 0 or row[last] != row[i] or not start[last] <= start[i] < end[last]:
            kept.append(i)
        elif (end[i] - start[i], score[i]) > (end[last] - start[last], score[last]):
            kept[-1] = i
    return kept


def is_inside_by_length(token_lengths: Int64s, origin: Origin) -> Bools:
    """[T] whether a token goes on with a word, of tokenizers that write those with a prefix. token_lengths: characters
    of each token as the vocabulary has it."""
    is_inside: Bools = token_lengths != origin.end - origin.start
    return is_inside


def is_inside_by_spaces(sentences: list[str], row: Int64s, start: Int64s) -> Bools:
    """[T] whether neither a token's first character nor the one before it is a space. row, start: [T] of each token."""
    lengths = np.fromiter(map(len, sentences), np.int64, len(sentences)) + 1
    text = "\n".join(sentences) + "\n\n"
    is_space = np.frombuffer(text.encode("utf-32-le"), np.uint32) == ord(" ")
    where = (np.cumsum(lengths) - lengths)[row] + start
    is_inside: Bools = (start > 0) & ~is_space[where] & ~is_space[where - 1]
    return is_inside
