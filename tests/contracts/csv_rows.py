"""Rows of a CSV file as other readers have them: pyarrow's, and Python's own."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import csv as arrow_csv


def texts_of_csv(path: Path) -> list[dict[str, str | None]]:
    """Every field as text by pyarrow: an empty field is null, "" an empty text."""
    names = records_of_csv(path)[0]
    table = arrow_csv.read_csv(
        path,
        parse_options=arrow_csv.ParseOptions(newlines_in_values=True),
        convert_options=arrow_csv.ConvertOptions(
            column_types={name: pa.string() for name in names},
            null_values=[""],
            strings_can_be_null=True,
            quoted_strings_can_be_null=False,
        ),
    )
    rows: list[dict[str, str | None]] = table.to_pylist()
    return rows


def records_of_csv(path: Path) -> list[list[str]]:
    """Every record by Python's csv, the first with the names."""
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.reader(file, strict=True))


def rows_of_csv(path: Path, schema: pa.Schema) -> list[dict[str, Any]]:
    """The rows with each field read as its column's type: nested ones from JSON."""
    kinds = {field.name: field.type for field in schema}
    return [{name: _value(text, kinds[name]) for name, text in row.items()} for row in texts_of_csv(path)]


def _value(text: str | None, kind: pa.DataType) -> Any:
    if text is None or pa.types.is_large_string(kind):
        return text
    if pa.types.is_nested(kind):
        return json.loads(text)
    return int(text) if pa.types.is_integer(kind) else float(text)
