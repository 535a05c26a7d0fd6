"""Files that came after an output was begun: their rows follow those of the first files, in the columns of those.

The columns of lines are typed from a sample, and more files would be another sample; so each group of files has a
reader of its own, which gives the first one's columns. A value that does not fit goes to `_rescued_data` or, where the
output was begun without that, makes an error row.
"""

from __future__ import annotations

import dataclasses
import json
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate

import pyarrow as pa

from packhorse.data import RESCUED, Chunk, Position, RowError
from packhorse.files import size_of
from packhorse.jsontext import dumps
from packhorse.stages import Reader

SHOWN_CHARS = 200


class AppendedReader:
    """The rows of several readers, one after the other. A position's file is counted through all of them."""

    def __init__(self, readers: Sequence[Reader]) -> None:
        self.first = readers[0]
        self.raw_column, self.rescues = self.first.raw_column, self.first.rescues
        self.files: Sequence[str] = [file for reader in readers for file in reader.files]
        self._readers = readers
        self._begins = list(accumulate((len(r.files) for r in readers[:-1]), initial=0))  # each one's first file
        self._weights = [sum(map(size_of, r.files)) for r in readers]  # bytes

    def schema(self) -> pa.Schema:
        return self.first.schema()

    def added_columns(self) -> list[str]:
        """What later files have and the first ones had not."""
        known = {*self.schema().names, RESCUED}
        return list(dict.fromkeys(n for r in self._readers[1:] for n in _names(r) if n not in known))

    def missing_columns(self) -> list[str]:
        """What the first files had and all of a later group have not."""
        later = [set(_names(r)) for r in self._readers[1:]]
        return [n for n in self.schema().names if n != RESCUED and any(n not in names for names in later)]

    def num_rows(self) -> int | None:
        counts = [reader.num_rows() for reader in self._readers]
        known = [count for count in counts if count is not None]
        return sum(known) if len(known) == len(counts) else None

    def progress(self, position: Position) -> float:
        """Share of the stored bytes before a position, 0 to 1."""
        group, inside = self._within(position)
        done = sum(self._weights[:group]) + self._weights[group] * self._readers[group].progress(inside)
        return done / max(sum(self._weights), 1)

    def fingerprint(self) -> list[dict[str, object]]:
        return [file for reader in self._readers for file in reader.fingerprint()]

    def spread(self, places: int) -> list[Position]:
        return self.first.spread(places)

    def read(self, start: Position, columns: Sequence[str], text_columns: Sequence[str]) -> Iterator[Chunk]:
        """Chunks from a position on, all with the first reader's columns. Raises what the readers raise."""
        group, at = self._within(start)
        if group == 0:
            yield from self.first.read(at, columns, text_columns)
            group, at = 1, Position(0, 0)
        fields = self._fields(columns, text_columns)
        is_all = set(self.schema().names) <= {field.name for field in fields}
        for later in range(group, len(self._readers)):
            names = {*self._readers[later].schema().names, self.raw_column}
            wanted = [f.name for f in fields if f.name in names] + [RESCUED] * (RESCUED in names)
            texts = [name for name in text_columns if name in names]
            for chunk in self._readers[later].read(at, list(dict.fromkeys(wanted)), texts):
                yield dataclasses.replace(_fitted(chunk, fields, is_all), file=chunk.file + self._begins[later])
            at = Position(0, 0)

    def _within(self, position: Position) -> tuple[int, Position]:
        group = bisect_right(self._begins, position.file) - 1
        return group, position._replace(file=position.file - self._begins[group])

    def _fields(self, columns: Sequence[str], text_columns: Sequence[str]) -> list[pa.Field]:
        """As the first reader's chunks have them."""
        schema = self.schema()
        names = dict.fromkeys([*columns, *text_columns])
        fields = [schema.field(n) if n in schema.names else pa.field(n, pa.large_binary()) for n in names]
        return [f.with_type(pa.large_string()) if f.name in text_columns else f for f in fields]


def _names(reader: Reader) -> list[str]:
    """The columns that its files have, whatever columns it was told to give."""
    names: list[str] = getattr(reader, "sampled", reader.schema()).names
    return names


def _fitted(chunk: Chunk, fields: Sequence[pa.Field], is_all: bool) -> Chunk:
    """is_all: whether the fields are all columns that the first files have."""
    names, errors = [field.name for field in fields], dict(chunk.errors)
    if RESCUED in chunk.table.column_names and RESCUED not in names:
        errors |= _lost(chunk, None if is_all else names)
    columns = [
        chunk.table[f.name]
        if f.name in chunk.table.column_names
        else pa.chunked_array([pa.nulls(chunk.table.num_rows, f.type)])
        for f in fields
    ]
    table = pa.Table.from_arrays(columns, schema=pa.schema(fields))
    return dataclasses.replace(chunk, table=table, errors=errors)


def _lost(chunk: Chunk, kept: Sequence[str] | None) -> dict[int, RowError]:
    """Rows with values of kept columns (None: of any) for which the output, as it was begun, has no place."""
    found = {}
    for i, text in enumerate(chunk.table[RESCUED].to_pylist()):
        if text is None or i in chunk.errors:
            continue
        values = {k: v for k, v in json.loads(text).items() if kept is None or k in kept}
        if values:
            found[i] = RowError("does_not_fit", f"{dumps(values)[:SHOWN_CHARS]} fits no column of the earlier files")
    return found
