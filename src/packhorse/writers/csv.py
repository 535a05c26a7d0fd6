"""CSV as RFC 4180 has it, but with lines that end in a single line feed; UTF-8, names of the columns in the first line.

A null is an empty field, an empty text is "": what PostgreSQL's COPY and DuckDB tell apart, and pyarrow with
strings_can_be_null and quoted_strings_can_be_null=False; Python's csv and pandas read both as an empty text. A text is
never altered: one that a spreadsheet takes for a formula stands there as it is. Lists, structs, vectors and the error
are JSON in a field.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa

from packhorse.data import is_json_text
from packhorse.errors import UsageError
from packhorse.stages import Writer
from packhorse.writers.values import foreign, json_texts, python_values

SPECIAL = frozenset(',"\r\n')


def make() -> Writer:
    return CsvWriter()


class CsvWriter:
    """One record a row, fields in column order. Every part begins with the names."""

    extension = ".csv"

    def files(self, name: str) -> tuple[str, ...]:
        return (name,)

    def write(self, table: pa.Table, paths: Sequence[str]) -> None:
        """Raises UsageError for a table of one column: a null in it would be an empty line, which is no record."""
        if table.num_columns < 2:
            raise UsageError("CSV needs two columns or more: keep another with --keep")
        with Path(paths[0]).open("w", encoding="utf-8", newline="") as file:
            file.write(",".join(map(_quoted, table.column_names)) + "\n")
            file.writelines(_lines(table))

    def assemble(self, parts: Sequence[Sequence[str]], paths: Sequence[str]) -> None:
        with Path(paths[0]).open("wb") as whole:
            for i, (part, *_) in enumerate(parts):
                with Path(part).open("rb") as file:
                    if i > 0:
                        _record(file)
                    shutil.copyfileobj(file, whole, 1 << 20)

    def merge(self, part: Sequence[str], rows: Sequence[int], table: pa.Table, paths: Sequence[str]) -> None:
        new = dict(zip(rows, _lines(table), strict=True))
        with Path(part[0]).open("rb") as old, Path(paths[0]).open("wb") as merged:
            merged.write(_record(old))
            for i, record in enumerate(iter(lambda: _record(old), b"")):
                merged.write(new[i].encode() if i in new else record)


def _lines(table: pa.Table) -> Iterator[str]:
    """Its records, without the names of the columns."""
    columns = [_fields(field, table[i]) for i, field in enumerate(table.schema)]
    return (",".join(fields) + "\n" for fields in zip(*columns, strict=True))


def _fields(field: pa.Field, column: pa.ChunkedArray) -> list[str]:
    """Each value as a field of a record, quoted where it must be."""
    if is_json_text(field):
        texts: list[str | None] = column.to_pylist()
    elif pa.types.is_floating(field.type):
        number = np.dtype(field.type.to_pandas_dtype()).type
        return ["" if v is None else str(number(v)) for v in column.to_pylist()]
    elif pa.types.is_nested(field.type):
        texts = [text if text != "null" else None for text in json_texts(field, column)]
    else:
        texts = [_text(value) for value in python_values(column)]
    return ["" if text is None else _quoted(text) for text in texts]


def _text(value: Any) -> str | None:
    if value is None or isinstance(value, str):
        return value
    return json.dumps(value) if isinstance(value, bool | int) else foreign(value)


def _quoted(text: str) -> str:
    if text and SPECIAL.isdisjoint(text):
        return text
    doubled = text.replace('"', '""')
    return f'"{doubled}"'


def _record(file: IO[bytes]) -> bytes:
    """The next one, empty at the end; a line feed in quotes does not end it."""
    lines: list[bytes] = []
    num_quotes = 0
    for line in iter(file.readline, b""):
        lines.append(line)
        num_quotes += line.count(b'"')
        if num_quotes % 2 == 0:
            break
    return b"".join(lines)
