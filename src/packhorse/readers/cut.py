"""Where a shard ends: computed from the input and the settings alone, so that every run cuts alike."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from packhorse.data import Chunk, Int64s, Position, Reduction, RowError, Shard
from packhorse.readers.columns import text_bytes

RAMP = (1_024, 4_096, 16_384)  # the device starts at once, the first commit comes early
MAX_ROWS = 65_536
MAX_TEXT_BYTES = 16 << 20
MAX_ROW_BYTES = 256 << 20  # all columns that are carried through
MAX_OUTPUT_BYTES = 256 << 20


@dataclass(frozen=True, slots=True)
class ShardRows:
    """A shard as read: its rows, and those that are in error already."""

    shard: Shard
    table: pa.Table
    errors: dict[int, RowError]
    picked: Int64s | None = None  # places in the shard, where these are only some of its rows

    @property
    def numbers(self) -> Int64s:
        """[n] of the rows, counted from the start of the input."""
        places = np.arange(self.table.num_rows) if self.picked is None else self.picked
        return self.shard.first_row + places

    @classmethod
    def of(cls, table: pa.Table, errors: dict[int, RowError]) -> ShardRows:
        """Rows that are no part of a file, as one shard."""
        return cls(Shard(0, 0, table.num_rows, Position(0, 0), Position(0, table.num_rows)), table, errors)


def text_output(reduction: Reduction, width: int) -> int:
    """Bytes of output that a byte of text makes: of vectors, one of `width` numbers for a token of about 4 bytes."""
    return width if reduction.kind == "vectors" else 0


def rows_allowed(index: int, shard_rows: int | None, output_row_bytes: int) -> int:
    """Most rows of the shard of that index."""
    if shard_rows is not None:
        return shard_rows
    fits = max(MAX_OUTPUT_BYTES // max(output_row_bytes, 1), 1)
    return min(RAMP[index] if index < len(RAMP) else MAX_ROWS, fits)


class _Open:
    """The shard that is being filled."""

    def __init__(self, index: int, first_row: int, start: Position) -> None:
        self.index, self.first_row, self.start = index, first_row, start
        self.pieces: list[pa.Table] = []
        self.errors: dict[int, RowError] = {}
        self.rows = self.text_bytes = self.row_bytes = 0

    def closed(self, end: Position) -> ShardRows:
        return ShardRows(
            Shard(self.index, self.first_row, self.rows, self.start, end),
            pa.concat_tables(self.pieces),
            self.errors,
        )


def cut_shards(
    chunks: Iterable[Chunk],
    start: Position,
    index: int,
    first_row: int,
    text_columns: Sequence[str],
    shard_rows: int | None,
    output_row_bytes: int,
    limit: int | None,
    output_of_text: int = 0,
) -> Iterator[ShardRows]:
    """Shards from a position on; index and first_row are the next one's. `limit` counts from the input's first row.
    output_of_text: bytes of output that a byte of text makes, where its length decides."""
    most_text = min(MAX_TEXT_BYTES, MAX_OUTPUT_BYTES // output_of_text) if output_of_text else MAX_TEXT_BYTES
    current = _Open(index, first_row, start)
    for chunk in chunks:
        texts, weights = np.cumsum(text_bytes(chunk.table, text_columns)), np.cumsum(chunk.row_bytes)
        at = 0
        while at < chunk.table.num_rows:
            if limit is not None and current.first_row + current.rows >= limit:
                break
            allowed = rows_allowed(current.index, shard_rows, output_row_bytes) - current.rows
            if limit is not None:
                allowed = min(allowed, limit - current.first_row - current.rows)
            text_before, weight_before = (int(c[at - 1]) if at else 0 for c in (texts, weights))
            stop = min(
                at + allowed,
                int(np.searchsorted(texts, most_text - current.text_bytes + text_before, side="right")),
                int(np.searchsorted(weights, MAX_ROW_BYTES - current.row_bytes + weight_before, side="right")),
            )
            if stop <= at and current.rows:
                yield current.closed(chunk.position(at))
                current = _Open(current.index + 1, current.first_row + current.rows, chunk.position(at))
                continue
            stop = max(stop, at + 1)  # a single row over a limit is a shard of its own
            current.errors |= {current.rows + i - at: e for i, e in chunk.errors.items() if at <= i < stop}
            current.pieces.append(chunk.table.slice(at, stop - at))
            current.rows += stop - at
            current.text_bytes += int(texts[stop - 1]) - text_before
            current.row_bytes += int(weights[stop - 1]) - weight_before
            at = stop
        end = chunk.position(at)
        if limit is not None and current.first_row + current.rows >= limit:
            break
    if current.rows:
        yield current.closed(end)
