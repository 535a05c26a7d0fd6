"""Rows of raw tokens cut to a length and set between the special tokens, as the tokenizers library would.

Done here, in numpy, because the library's own truncation also builds every part that it cuts off: for a pair of long
texts each part of one with each part of the other, gigabytes for a single row. And so the tokens lost are counted.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from packhorse.data import Bools, Int32s, Int64s, Tokens, offsets_of
from packhorse.errors import ModelError

PROBES = ("a", "", "A longer text, with words.", "1 + 1 = 2", "\u4e2d\u6587 \u00e9")


class Raw(NamedTuple):
    """Rows of ids without special tokens: flat [T] and lengths [n]."""

    ids: Int32s
    lengths: Int64s


@dataclass(frozen=True, slots=True)
class Layout:
    """Where special tokens stand: gaps[0] text gaps[1] (pair gaps[2]), with the type ids of all of them."""

    gaps: tuple[tuple[int, ...], ...]
    gap_types: tuple[tuple[int, ...], ...]
    text_types: tuple[int, ...]

    @property
    def num_special(self) -> int:
        return sum(map(len, self.gaps))


def bare_layout(num_texts: int) -> Layout:
    """No special tokens; the library's type ids are then those of the texts, 0 and 1."""
    return Layout(((),) * (num_texts + 1), ((),) * (num_texts + 1), tuple(range(num_texts)))


def find_layout(backend: Any, has_pairs: bool) -> Layout:
    """The layout of a tokenizer's post-processor, read off an example and proven on others.

    Raises ModelError where special tokens do not stand at fixed places.
    """
    probes = [(a, b) if has_pairs else (a,) for a in PROBES for b in (PROBES if has_pairs else PROBES[:1])]
    found = [_read_layout(backend.encode(*probe), len(probe)) for probe in probes]
    layout = max(found, key=lambda x: sum(t is not None for t in x[1]))[0]
    for probe in probes:
        raw = [backend.encode(text, add_special_tokens=False).ids for text in probe]
        rows = [Raw(np.array(ids, np.int32), np.array([len(ids)])) for ids in raw]
        tokens, expected = assemble(rows, [row.lengths for row in rows], layout, True, "right"), backend.encode(*probe)
        if tokens.ids.tolist() != expected.ids or (
            tokens.type_ids is None or tokens.type_ids.tolist() != expected.type_ids
        ):
            raise ModelError(f"the tokenizer sets {probe} between special tokens in a way that is not supported")
    return layout


def _read_layout(encoding: Any, num_texts: int) -> tuple[Layout, tuple[int | None, ...]]:
    """Special tokens before, between and behind the texts; None for the type of a text without tokens."""
    gaps: list[list[int]] = [[] for _ in range(num_texts + 1)]
    gap_types: list[list[int]] = [[] for _ in range(num_texts + 1)]
    types: list[int | None] = [None] * num_texts
    at = 0
    for token, type_id, sequence in zip(encoding.ids, encoding.type_ids, encoding.sequence_ids, strict=True):
        if sequence is None:
            gaps[at].append(token)
            gap_types[at].append(type_id)
        else:
            at = sequence + 1
            types[sequence] = type_id
    layout = Layout(tuple(map(tuple, gaps)), tuple(map(tuple, gap_types)), tuple(t or 0 for t in types))
    return layout, tuple(types)


def kept_lengths(lengths: list[Int64s], room: int | None) -> list[Int64s]:
    """Tokens kept of each text of a row, at most `room` together; the longer text of a pair is cut first.

    The rule is `longest_first` of the tokenizers library (tokenizers/src/utils/truncation.rs).
    """
    if room is None:
        return lengths
    if len(lengths) == 1:
        return [np.minimum(lengths[0], room)]
    first, second = lengths
    short, long = np.minimum(first, second), np.maximum(first, second)
    long = np.where(short > room, short, np.maximum(short, room - short))
    is_both = short + long > room
    short, long = np.where(is_both, room // 2, short), np.where(is_both, room // 2 + room % 2, long)
    cut = (np.where(first > second, long, short), np.where(first > second, short, long))
    fits = first + second <= room
    return [np.where(fits, whole, part) for whole, part in zip(lengths, cut, strict=True)]


def assemble(rows: list[Raw], kept: list[Int64s], layout: Layout, with_type_ids: bool, side: str) -> Tokens:
    """Special tokens and the kept part of each text, in the layout's order. side: where a text is cut."""
    lengths: Int64s = np.stack(kept).sum(axis=0) + layout.num_special
    offsets = offsets_of(lengths)
    ids = np.empty(int(offsets[-1]), np.int32)
    type_ids = np.empty(len(ids), np.int32) if with_type_ids else None
    at = offsets[:-1].copy()  # where each row goes on
    for part, (gap, gap_types) in enumerate(zip(layout.gaps, layout.gap_types, strict=True)):
        for token, type_id in zip(gap, gap_types, strict=True):
            ids[at] = token
            if type_ids is not None:
                type_ids[at] = type_id
            at += 1
        if part < len(rows):
            source, target = _places(rows[part], kept[part], at, len(ids), side)
            ids[target] = rows[part].ids[source]
            if type_ids is not None:
                type_ids[target] = layout.text_types[part]
            at += kept[part]
    return Tokens(ids, offsets, type_ids)


def _places(row: Raw, kept: Int64s, at: Int64s, num_ids: int, side: str) -> tuple[Bools | slice, Bools]:
    """Masks of the kept tokens: over the raw ids, and over the assembled ones, whose rows go on at `at`."""
    target = _runs(at, kept, num_ids)
    if int(kept.sum()) == len(row.ids):
        return slice(None), target
    begin: Int64s = offsets_of(row.lengths)[:-1]
    if side == "left":
        begin = np.add(begin, row.lengths - kept)
    return _runs(begin, kept, len(row.ids)), target


def _runs(starts: Int64s, lengths: Int64s, size: int) -> Bools:
    """[size] true inside of the runs, which do not overlap. A byte a token, where indices would be eight."""
    has_any = lengths > 0
    starts, ends = starts[has_any], (starts + lengths)[has_any]
    steps = np.zeros(size + 1, np.int8)
    steps[starts] += 1  # two steps: a run may begin where another ends
    steps[ends] -= 1
    return np.cumsum(steps[:-1], dtype=np.int8).view(np.bool_)
