"""Which tokens of its texts each sequence has: all of a row, windows over it, or a row with each of its labels.

Pure arithmetic over numbers of tokens; special tokens come later.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from packhorse.data import Bools, Int64s, RowError, offsets_of
from packhorse.tokenize.truncate import kept_lengths


class Parts(NamedTuple):
    """S sequences: the row of each, and of each text its first token there and how many. refused: rows that have no
    sequence; lost: tokens of each row that no sequence has."""

    row_of: Int64s  # [S] ascending
    starts: list[Int64s]  # [S] of each text
    lengths: list[Int64s]  # [S] of each text
    refused: Mapping[int, RowError]
    lost: Int64s  # [rows]

    def only(self, is_kept: Bools) -> Parts:
        """Some of the sequences."""
        starts, lengths = ([values[is_kept] for values in texts] for texts in (self.starts, self.lengths))
        return self._replace(row_of=self.row_of[is_kept], starts=starts, lengths=lengths)

    def without_cut(self) -> Parts:
        """Rows that lost tokens are refused instead."""
        refused = {
            int(i): RowError(
                "text_too_long", f"{self.lost[i]:,} tokens too many for the model; --long truncate cuts it"
            )
            for i in np.flatnonzero(self.lost)
        }
        kept = self.only(~np.isin(self.row_of, list(refused)))
        return kept._replace(refused={**self.refused, **refused}, lost=np.zeros_like(self.lost))


def cut_parts(texts: list[Int64s], room: int | None, gives: str, side: str) -> Parts:
    """One sequence a row, cut to `room` tokens, all texts together. texts: of each [rows] its tokens. gives: which of
    two texts gives way: longest, first or second; rows are refused where the first leaves nothing of the second. side:
    where a text is cut."""
    total = np.sum(texts, axis=0)
    kept = texts if room is None else _cut(texts, room, gives)
    starts = [n - k if side == "left" else np.zeros_like(k) for n, k in zip(texts, kept, strict=True)]
    is_full = np.zeros(len(total), np.bool_)
    if room is not None and gives == "second" and len(texts) == 2:
        is_full = (texts[0] >= room) & (total > room)
    refused = {int(i): _no_room(texts[0][i], room, "") for i in np.flatnonzero(is_full)}
    parts = Parts(np.arange(len(total)), starts, kept, refused, np.where(is_full, 0, total - np.sum(kept, axis=0)))
    return parts.only(~is_full) if refused else parts


def _no_room(first: int, room: int | None, stride: str) -> RowError:
    """Of a row whose first text, so many tokens, leaves no room for its second."""
    return RowError(
        "text_too_long", f"its first text has {first:,} tokens, and both together may have {room:,}{stride}: shorten it"
        f", or give a larger --max-length{' or a smaller --stride' if stride else ''}",
    )  # fmt: skip


def _cut(texts: list[Int64s], room: int, gives: str) -> list[Int64s]:
    """[rows] of each text what is kept of it. Where one text has to give way, it keeps a token at least."""
    if len(texts) == 1 or gives == "longest":
        return kept_lengths(texts, room)
    first, second = texts
    if gives == "second":
        second, first = _cut([second, first], room, "first")
        return [first, second]
    second = np.minimum(second, np.maximum(room - 1, 0))
    return [np.minimum(first, room - second), second]


def whole_parts(texts: list[Int64s], room: int | None) -> Parts:
    """One sequence a row; rows longer than `room` are refused."""
    total = np.sum(texts, axis=0)
    too_long = np.flatnonzero(total > room) if room is not None else ()
    refused = {
        int(i): RowError(
            "text_too_long", f"{total[i]:,} tokens, and the model takes {room:,} beside its special ones: "
            "--long truncate cuts it, --long windows reads all of it",
        )
        for i in too_long
    }  # fmt: skip
    nothing = np.zeros_like(total)
    parts = Parts(np.arange(len(total)), [nothing] * len(texts), texts, refused, nothing)
    return parts.only(~np.isin(parts.row_of, list(refused)))


def window_parts(texts: list[Int64s], room: int | None, stride: int) -> Parts:
    """As many sequences a row as its last text needs, each beginning `stride` tokens before the end of the one before,
    as the tokenizers library does it. The first of two texts stands whole in each; rows are refused where it leaves no
    more than the stride, and the last does not fit."""
    if room is None:
        return whole_parts(texts, None)
    moving = texts[-1]
    rooms = np.full(len(moving), room) if len(texts) == 1 else room - texts[0]
    too_few = np.flatnonzero((rooms <= stride) & (moving > rooms))
    refused = {int(i): _no_room(texts[0][i], room, f", {stride:,} of them shared by windows") for i in too_few}
    steps = np.maximum(rooms - stride, 1)
    counts = np.maximum(-(-(moving - stride) // steps), 1)
    counts[list(refused)] = 0
    row_of, number = _repeated(counts)
    starts = number * steps[row_of]
    lengths = np.minimum(moving[row_of] - starts, rooms[row_of])
    before = [] if len(texts) == 1 else [texts[0][row_of]]
    nothing = [np.zeros_like(starts) for _ in before]
    return Parts(row_of, [*nothing, starts], [*before, lengths], refused, np.zeros(len(moving), np.int64))


def label_parts(text: Int64s, labels: Int64s, counts: Int64s, room: int | None, side: str) -> Parts:
    """Each row with each of its labels, the text cut. labels: [sequences] tokens of the label's own text; counts:
    [rows] labels of each."""
    row_of, _ = _repeated(counts)
    pair = [text[row_of], labels]
    made = cut_parts(pair, room, "first", side)
    lost = np.zeros(len(text), np.int64)
    np.maximum.at(lost, row_of, made.lost)
    return Parts(row_of, made.starts, made.lengths, {}, lost)


def _repeated(counts: Int64s) -> tuple[Int64s, Int64s]:
    """[S] the row of each sequence, and its number among those of its row."""
    row_of = np.repeat(np.arange(len(counts)), counts)
    return row_of, np.arange(len(row_of)) - offsets_of(counts)[:-1][row_of]
