"""Parquet: row groups are streamed, page checksums verified; a resumed run decodes only from its row group on."""

from __future__ import annotations

import bisect
import hashlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from packhorse.data import Chunk, Position
from packhorse.errors import InputError
from packhorse.files import fingerprint, is_remote, open_file
from packhorse.readers.columns import normalized, with_large_strings
from packhorse.readers.sample import even_rows
from packhorse.stages import Reader

EXTENSIONS = (".parquet", ".pq")
CHUNK_ROWS = 16_384
LARGE_GROUP_BYTES = 64 << 20  # all columns, not compressed
FETCH_BYTES = 64 << 20  # of row groups whose columns are fetched from a remote file at once
TAIL_BYTES = 64 << 10  # enough for most footers


def open_files(files: Sequence[str]) -> Reader:
    return ParquetReader(files)


class ParquetReader:
    """Rows of Parquet files of one schema, in the order given. A mark is a row's number in its file."""

    raw_column: str | None = None
    rescues = False

    def __init__(self, files: Sequence[str]) -> None:
        self.files = files
        self._footers = [_footer(f) for f in files]
        self._check_schemas()

    def schema(self) -> pa.Schema:
        return with_large_strings(self._footers[0].schema.to_arrow_schema())

    def num_rows(self) -> int | None:
        return sum(f.num_rows for f in self._footers)

    def progress(self, position: Position) -> float:
        """Share of the rows before a position, 0 to 1."""
        before = sum(f.num_rows for f in self._footers[: position.file]) + position.mark
        return before / max(self.num_rows() or 0, 1)

    def fingerprint(self) -> list[dict[str, object]]:
        return [fingerprint(f) | {"footer_sha256": _footer_hash(f)} for f in self.files]

    def spread(self, places: int) -> list[Position]:
        """In a large row group its first row stands for the others: the way to a later one decodes all before it."""
        rows = even_rows([f.num_rows for f in self._footers], places)
        return list(dict.fromkeys(self._cheap_to_reach(position) for position in rows))

    def _cheap_to_reach(self, position: Position) -> Position:
        footer, first = self._footers[position.file], 0
        for group in map(footer.row_group, range(footer.num_row_groups)):
            if position.mark < first + group.num_rows:
                return Position(position.file, first) if group.total_byte_size > LARGE_GROUP_BYTES else position
            first += group.num_rows
        return position

    def read(self, start: Position, columns: Sequence[str], text_columns: Sequence[str]) -> Iterator[Chunk]:
        """Chunks from a position on. Raises InputError naming the file that cannot be read."""
        for file in range(start.file, len(self.files)):
            try:
                yield from self._read_file(file, start.mark if file == start.file else 0, columns, text_columns)
            except (pa.ArrowException, OSError) as error:
                raise InputError(f"{self.files[file]}: cannot be read as Parquet: {error}") from error

    def _read_file(self, file: int, mark: int, columns: Sequence[str], text_columns: Sequence[str]) -> Iterator[Chunk]:
        footer = self._footers[file]
        ends = np.cumsum([footer.row_group(g).num_rows for g in range(footer.num_row_groups)], dtype=np.int64)
        group = bisect.bisect_right(ends, mark)
        if group >= len(ends):
            return
        row = int(ends[group - 1]) if group else 0
        weights = np.array([_row_weight(footer.row_group(g)) for g in range(footer.num_row_groups)], np.int64)
        wanted = list(dict.fromkeys([*columns, *text_columns]))
        with _opened(self.files[file], footer) as source:
            for batch in _batches(source, self._fetches(file, group), wanted):
                skip = min(max(mark - row, 0), batch.num_rows)
                rows = np.arange(row + skip, row + batch.num_rows + 1)
                row += batch.num_rows
                if len(rows) > 1:
                    row_bytes = weights[np.searchsorted(ends, rows[:-1], side="right")]
                    yield _chunk(batch.slice(skip), wanted, file, rows, row_bytes, text_columns)

    def _fetches(self, file: int, first: int) -> Iterator[list[int]]:
        """Row groups from the first on, in runs that are fetched at once: of a local file all of them, of a remote one
        64 MiB, because what was fetched is held until the run is decoded."""
        footer = self._footers[file]
        groups = range(first, footer.num_row_groups)
        if not is_remote(self.files[file]):
            yield list(groups)
            return
        run, num_bytes = [], 0
        for group in groups:
            run.append(group)
            num_bytes += _stored_bytes(footer.row_group(group))
            if num_bytes >= FETCH_BYTES or group == groups[-1]:
                yield run
                run, num_bytes = [], 0

    def _check_schemas(self) -> None:
        first = self._footers[0].schema.to_arrow_schema()
        for path, footer in zip(self.files[1:], self._footers[1:], strict=True):
            schema = footer.schema.to_arrow_schema()
            if not schema.equals(first):
                raise InputError(f"{path}: columns differ from those of {self.files[0]}: {_difference(first, schema)}")


def _chunk(
    batch: pa.RecordBatch,
    wanted: list[str],
    file: int,
    marks: Any,
    row_bytes: Any,
    text_columns: Sequence[str],
) -> Chunk:
    table, errors = normalized(pa.Table.from_batches([batch]).select(wanted), text_columns)
    return Chunk(table, file, marks, row_bytes, errors)


def _row_weight(group: Any) -> int:
    return int(group.total_byte_size // max(group.num_rows, 1)) + 1


def _difference(first: pa.Schema, other: pa.Schema) -> str:
    one, two = ({f.name: _kind(f) for f in s} for s in (first, other))
    names = [n for n in {**one, **two} if one.get(n) != two.get(n)]
    return (
        "; ".join(f"{n}: {one.get(n, 'missing')} there, {two.get(n, 'missing')} here" for n in names)
        or "order of columns"
    )


def _kind(field: pa.Field) -> str:
    return str(field.type) if field.nullable else f"{field.type} without nulls"


def _opened(address: str, footer: Any) -> Any:
    """A remote file gives the parts of it that hold the columns asked for, near ones together. Of a local one that
    would keep all that was read: 74 bytes a row."""
    if not is_remote(address):
        return pq.ParquetFile(address, pre_buffer=False, page_checksum_verification=True)
    bytes_of = open_file(address, is_sequential=False)
    return pq.ParquetFile(bytes_of, metadata=footer, pre_buffer=True, page_checksum_verification=True)


def _batches(source: Any, fetches: Iterator[list[int]], wanted: list[str]) -> Iterator[pa.RecordBatch]:
    for groups in fetches:
        yield from source.iter_batches(CHUNK_ROWS, row_groups=groups, columns=wanted)


def _stored_bytes(group: Any) -> int:
    return sum(group.column(i).total_compressed_size for i in range(group.num_columns))


def _footer(address: str) -> Any:
    try:
        if not is_remote(address):
            return pq.read_metadata(address)
        return pq.read_metadata(pa.BufferReader(_tail(address)))
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{address}: not a readable Parquet file: {error}") from error


def _footer_hash(address: str) -> str:
    return hashlib.sha256(_tail(address)[:-8]).hexdigest()


def _tail(address: str) -> bytes:
    """The footer, its length and PAR1: the end of the file, and what goes before that where the footer is longer.

    Raises InputError.
    """
    with open_file(address, is_sequential=False) as file:
        size = file.seek(0, 2)
        start = file.seek(max(size - TAIL_BYTES, 0))
        tail = file.read()
        wanted = min(int.from_bytes(tail[-8:-4], "little") + 8, size)
        if wanted > len(tail):
            file.seek(size - wanted)
            tail = file.read(start - (size - wanted)) + tail
    return tail[-wanted:]
