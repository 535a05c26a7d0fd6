"""Parquet: row groups are streamed, page checksums verified; a resumed run decodes only from its row group on."""

from __future__ import annotations

import bisect
import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from packhorse.data import Chunk, Position
from packhorse.errors import InputError
from packhorse.files import fingerprint
from packhorse.readers.columns import normalized, with_large_strings
from packhorse.readers.sample import even_rows
from packhorse.stages import Reader

EXTENSIONS = (".parquet", ".pq")
CHUNK_ROWS = 16_384
LARGE_GROUP_BYTES = 64 << 20  # all columns, not compressed


def open_files(files: Sequence[str]) -> Reader:
    return ParquetReader(files)


class ParquetReader:
    """Rows of Parquet files of one schema, in the order given. A mark is a row's number in its file."""

    raw_column: str | None = None

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
        return [fingerprint(f) | {"footer_sha256": _footer_hash(Path(f))} for f in self.files]

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
        with pq.ParquetFile(self.files[file], page_checksum_verification=True) as source:
            groups = list(range(group, footer.num_row_groups))
            wanted = list(dict.fromkeys([*columns, *text_columns]))
            for batch in source.iter_batches(CHUNK_ROWS, row_groups=groups, columns=wanted):
                skip = min(max(mark - row, 0), batch.num_rows)
                rows = np.arange(row + skip, row + batch.num_rows + 1)
                row += batch.num_rows
                if len(rows) > 1:
                    row_bytes = weights[np.searchsorted(ends, rows[:-1], side="right")]
                    yield _chunk(batch.slice(skip), wanted, file, rows, row_bytes, text_columns)

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


def _footer(path: str) -> Any:
    try:
        return pq.read_metadata(path)
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{path}: not a readable Parquet file: {error}") from error


def _footer_hash(path: Path) -> str:
    with path.open("rb") as file:
        file.seek(-8, 2)
        length = int.from_bytes(file.read(4), "little")
        file.seek(-8 - length, 2)
        return hashlib.sha256(file.read(length)).hexdigest()
