"""Rows of an input, taken here and there: what a job's lengths, precision and rates are looked at on."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import pyarrow as pa

from packhorse.data import Chunk, Position, RowError
from packhorse.readers.columns import column_texts
from packhorse.stages import Reader

SAMPLE_ROWS = 1_024
PLACES = 16
ALL = 1 - 1e-9  # of an input; its share is a sum of floats


@dataclass(frozen=True, slots=True)
class Sample:
    """texts: one list a text column, None for a row without a text. total_rows: of the job, an estimate where the input
    does not tell."""

    texts: list[list[str | None]]
    total_rows: float

    @property
    def is_whole(self) -> bool:
        """Whether there are no other rows."""
        return len(self.texts[0]) == self.total_rows

    @property
    def pairs(self) -> list[str | None] | None:
        return self.texts[1] if len(self.texts) > 1 else None


TextsOf = Callable[[pa.Table, Mapping[int, RowError]], list[list[str | None]]]


def take_sample(
    reader: Reader, text_columns: Sequence[str], limit: int | None, max_rows: int = SAMPLE_ROWS,
    columns: Sequence[str] = (), texts_of: TextsOf | None = None, num_texts: int = 1,
) -> Sample:  # fmt: skip
    """Up to max_rows rows from up to 16 places spread over the input; of an input with --limit, its first rows.

    texts_of: of a table and its rows in error, where a text is more than one column, or a list; columns: others that it
    looks at; num_texts: of a row.
    A function of the input and the arguments alone, so that a resumed run sees the same rows. Raises InputError.
    """
    places = reader.spread(min(PLACES, max_rows)) if limit is None else [Position(0, 0)]
    texts: list[list[str | None]] = [[] for _ in text_columns] if texts_of is None else [[] for _ in range(num_texts)]
    take = _Take(reader, text_columns, columns, texts_of or _plain(text_columns))
    most_bytes = (getattr(reader, "head_bytes", None) or sys.maxsize) // 2  # the job reads the rest of its rows once
    share, quota = 0.0, (max_rows if limit is None else min(max_rows, limit)) // len(places)
    for place, following in zip(places, [*places[1:], None], strict=True):
        end = _take(take, place, following, quota, texts, most_bytes)
        share += reader.progress(end) - reader.progress(place)
    known, seen = reader.num_rows(), len(texts[0])
    total = float(known) if known is not None else seen / share if seen and share < ALL else float(seen)
    return Sample(texts, total if limit is None else min(total, limit))


class _Take(NamedTuple):
    reader: Reader
    text_columns: Sequence[str]
    columns: Sequence[str]
    texts_of: TextsOf


def _plain(text_columns: Sequence[str]) -> TextsOf:
    return lambda table, errors: [column_texts(table[name], errors) for name in text_columns]


def _take(
    take: _Take,
    place: Position,
    following: Position | None,
    quota: int,
    texts: list[list[str | None]],
    most_bytes: int,
) -> Position:
    """Adds the texts of up to `quota` rows from a place on, none of the following one's; where it ended."""
    end = place
    read = list(dict.fromkeys([*take.columns, *take.text_columns]))
    for chunk in take.reader.read(place, read, list(take.text_columns)):
        count = min(quota, _rows_before(chunk, following))
        errors = {i: error for i, error in chunk.errors.items() if i < count}
        for seen, some in zip(texts, take.texts_of(chunk.table.slice(0, count), errors), strict=True):
            seen += some
        quota -= count
        end = chunk.position(count)
        if not quota or count < chunk.table.num_rows or chunk.marks[count] >= most_bytes:
            break
    return end


def _rows_before(chunk: Chunk, following: Position | None) -> int:
    """Rows of the chunk that lie before a position."""
    if following is None or chunk.file < following.file:
        return chunk.table.num_rows
    if chunk.file > following.file:
        return 0
    return int((chunk.marks[:-1] < following.mark).sum())


def even_rows(num_rows: Sequence[int], places: int) -> list[Position]:
    """Positions of rows at even steps through files of so many rows each; the first is the input's first row."""
    total = sum(num_rows)
    found: list[Position] = []
    for k in range(places):
        row, file = k * total // places, 0
        while file < len(num_rows) - 1 and row >= num_rows[file]:
            row, file = row - num_rows[file], file + 1
        found.append(Position(file, row))
    return list(dict.fromkeys(found)) or [Position(0, 0)]
