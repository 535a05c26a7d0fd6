"""Columns of a table as Python values, so that no row can end the others."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from packhorse.data import RowError
from packhorse.jsontext import dumps

RowErrors = Mapping[int, RowError]

# Arrow writes as many digits of a second as the type has; Python, as many as there are.
ZEROS_OF_SECONDS = r"(:\d\d)(?:\.0+|(\.\d*[1-9])0+)([Z+-].*)?$"


def is_text(kind: pa.DataType) -> bool:
    """Whether readers can give a column of this type as large_string."""
    if pa.types.is_dictionary(kind):
        return is_text(kind.value_type)
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def without_errors(column: pa.ChunkedArray, errors: RowErrors) -> pa.ChunkedArray:
    """The column with null where a row is in error already: its bytes may be no text."""
    if not errors:
        return column
    is_good = np.ones(len(column), np.bool_)
    is_good[list(errors)] = False
    return column.combine_chunks().take(pa.array(np.arange(len(column)), mask=~is_good))


def values_of(name: str, column: pa.ChunkedArray, errors: RowErrors) -> tuple[list[Any], dict[int, RowError]]:
    """The column's values as Python has them. A row in `errors` is None, and so is one whose text is not UTF-8, which
    is in error from now on."""
    column = without_errors(column, errors)
    try:
        return column.to_pylist(), {}
    except UnicodeDecodeError:  # lists and structs: readers look at columns of text alone
        return _values_one_by_one(name, column)


def _values_one_by_one(name: str, column: pa.ChunkedArray) -> tuple[list[Any], dict[int, RowError]]:
    values: list[Any] = []
    errors: dict[int, RowError] = {}
    for row, value in enumerate(column):
        try:
            values.append(value.as_py())
        except UnicodeDecodeError as error:
            values.append(None)
            seen = f"byte {error.object[error.start]:#04x} at {error.start} is not UTF-8"
            errors[row] = RowError("invalid_utf8", f"column {name!r}: {seen}")
    return values, errors


def texts_of(name: str, column: pa.ChunkedArray, errors: RowErrors) -> tuple[list[str | None], dict[int, RowError]]:
    """[n] what stands in the column, as text: strings as they are, numbers and times as Python writes them, true and
    false, lists and structs as JSON. None for null and for a row in error."""
    kind = column.type
    if pa.types.is_dictionary(kind):
        return texts_of(name, column.cast(kind.value_type), errors)
    if is_text(kind) or _is_written_by_arrow(kind):
        texts = without_errors(column, errors).cast(pa.large_string())
        if pa.types.is_timestamp(kind) or pa.types.is_time(kind):
            texts = pc.replace_substring_regex(texts, ZEROS_OF_SECONDS, r"\1\2\3")
        return texts.to_numpy(zero_copy_only=False).tolist(), {}
    if pa.types.is_floating(kind):
        return _float_texts(without_errors(column, errors)), {}
    values, found = values_of(name, column, errors)
    written = partial(dumps, default=str, ensure_ascii=False) if pa.types.is_nested(kind) else str
    return [None if value is None else written(value) for value in values], found


def _is_written_by_arrow(kind: pa.DataType) -> bool:
    numbers = (pa.types.is_integer, pa.types.is_boolean, pa.types.is_decimal, pa.types.is_null)
    times = (pa.types.is_timestamp, pa.types.is_date, pa.types.is_time)
    return any(check(kind) for check in (*numbers, *times))


def _float_texts(column: pa.ChunkedArray) -> list[str | None]:
    """The shortest digits that tell a float of its size from the others: 0.1 of a float32 too."""
    dtype = column.type.to_pandas_dtype()
    values = pc.fill_null(column, 0).to_numpy().astype(dtype, copy=False)
    texts: list[str | None] = [str(value) for value in values]
    for row in np.flatnonzero(column.is_null().to_numpy(zero_copy_only=False)):
        texts[row] = None
    return texts
