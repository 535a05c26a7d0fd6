"""Rows that are in memory already: pyarrow tables, pandas and polars frames, datasets.Dataset."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from packhorse.data import Chunk, Position
from packhorse.errors import UsageError
from packhorse.readers.columns import normalized, with_large_strings
from packhorse.readers.sample import even_rows

CHUNK_ROWS = 16_384


def as_table(rows: Any) -> pa.Table:
    """A pyarrow.Table of a Table, RecordBatch, pandas or polars frame, datasets.Dataset or dict of columns.

    Raises UsageError for anything else.
    """
    if isinstance(rows, pa.Table):
        return rows
    if isinstance(rows, pa.RecordBatch):
        return pa.Table.from_batches([rows])
    if isinstance(rows, dict):
        return pa.table(rows)
    kind = f"{type(rows).__module__.split('.')[0]}.{type(rows).__name__}"
    if kind == "pandas.DataFrame":
        return pa.Table.from_pandas(rows, preserve_index=False)
    if kind == "datasets.Dataset":
        table = rows.with_format("arrow")[:]
        return table.replace_schema_metadata(None)
    if kind == "polars.DataFrame":
        import polars

        return rows.to_arrow(compat_level=polars.CompatLevel.oldest())
    if hasattr(rows, "__arrow_c_stream__"):
        return pa.table(rows)
    raise UsageError(
        f"input of type {kind}: legal are a path, a pyarrow table, a pandas or polars frame, a datasets.Dataset"
    )


class TableReader:
    """A Reader over a table in memory. A mark is a row's number."""

    files: Sequence[str] = ("table in memory",)
    raw_column: str | None = None
    rescues = False

    def __init__(self, rows: Any) -> None:
        table = as_table(rows)
        self._table = table.cast(with_large_strings(table.schema))

    def schema(self) -> pa.Schema:
        return self._table.schema

    def num_rows(self) -> int | None:
        return int(self._table.num_rows)

    def progress(self, position: Position) -> float:
        return position.mark / max(self._table.num_rows, 1)

    def fingerprint(self) -> list[dict[str, object]]:
        """sha256 over the rows as an Arrow stream: the table has no name and no time."""
        sink = _HashSink()
        with pa.ipc.new_stream(pa.PythonFile(sink, "w"), self._table.schema) as stream:
            stream.write_table(self._table.combine_chunks(), CHUNK_ROWS)
        return [{"path": self.files[0], "sha256": sink.digest.hexdigest()}]

    def spread(self, places: int) -> list[Position]:
        return even_rows([self._table.num_rows], places)

    def read(self, start: Position, columns: Sequence[str], text_columns: Sequence[str]) -> Iterator[Chunk]:
        wanted = list(dict.fromkeys([*columns, *text_columns]))
        weight = self._table.nbytes // max(self._table.num_rows, 1) + 1
        for row in range(start.mark, self._table.num_rows, CHUNK_ROWS):
            table, errors = normalized(self._table.slice(row, CHUNK_ROWS).select(wanted), text_columns)
            marks = np.arange(row, row + table.num_rows + 1)
            yield Chunk(table, 0, marks, np.full(table.num_rows, weight, np.int64), errors)


class _HashSink:
    """A file to write to that keeps a sha256 alone."""

    closed = False

    def __init__(self) -> None:
        self.digest = hashlib.sha256()

    def write(self, data: Any) -> int:
        self.digest.update(data)
        return len(data)

    def flush(self) -> None: ...

    def close(self) -> None: ...
