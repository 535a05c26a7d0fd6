"""Columns of lists of strings, as Arrow has them or as JSON text: words of a text, labels of a row."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from packhorse.data import RowError, is_json_text
from packhorse.readers.columns import column_texts, is_words, list_error


def holds_lists(field: pa.Field) -> bool:
    """Whether a column can be one of lists of strings; what stands in JSON text is seen row by row."""
    return is_words(field.type) or is_json_text(field)


def column_inputs(table: pa.Table, name: str, errors: Mapping[int, RowError]) -> tuple[list[Any], dict[int, RowError]]:
    """The column's strings, or lists of strings, [n]; None for null, for rows that are in error already and for values
    that are none, whose errors are given too."""
    field, column = table.schema.field(name), table[name]
    if not holds_lists(field):
        return column_texts(column, errors), {}
    values, broken = _lists(column, errors) if is_words(field.type) else _parsed(column_texts(column, errors))
    for i, value in enumerate(values):
        error = None if value is None else list_error(value)
        if error is not None:
            broken[i] = RowError(error.kind, f"column {name!r}: {error.message}")
            values[i] = None
    return values, broken


def _parsed(texts: list[str | None]) -> tuple[list[Any], dict[int, RowError]]:
    return [None if text is None else json.loads(text) for text in texts], {}


def _lists(column: pa.ChunkedArray, errors: Mapping[int, RowError]) -> tuple[list[Any], dict[int, RowError]]:
    """Bytes that are no UTF-8 come through a Parquet file unnoticed."""
    try:
        return [None if i in errors else words for i, words in enumerate(column.to_pylist())], {}
    except UnicodeDecodeError:
        pass
    values: list[Any] = [None] * len(column)
    broken: dict[int, RowError] = {}
    for i, words in enumerate(column):
        try:
            values[i] = None if i in errors else words.as_py()
        except UnicodeDecodeError as error:
            broken[i] = RowError("invalid_utf8", f"byte {error.object[error.start]:#04x} of a word is not UTF-8")
    return values, broken
