"""Arrow columns as the stages want them: text as large_string, broken text found row by row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from packhorse.data import RESCUED, Int64s, RowError, is_json_text
from packhorse.errors import UsageError


def is_text(kind: pa.DataType) -> bool:
    """Whether a column of this type can be the text column: strings, and dictionaries of strings."""
    if pa.types.is_dictionary(kind):
        return is_text(kind.value_type)
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def has_lone_surrogate(text: str) -> bool:
    """Half a surrogate pair: Python's strings and JSON can have it, UTF-8 and so Arrow cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False


def with_large_strings(schema: pa.Schema) -> pa.Schema:
    """Strings get 64-bit offsets: a column of a shard may pass 2 GiB."""
    fields = [
        f.with_type(pa.large_string()) if pa.types.is_string(f.type) or pa.types.is_string_view(f.type) else f
        for f in schema
    ]
    return pa.schema(fields, metadata=schema.metadata)


def column_texts(column: pa.ChunkedArray, errors: Mapping[int, RowError]) -> list[str | None]:
    """The column's strings; None for null and for rows that are in error already (their bytes may be no text)."""
    if errors:
        bad = np.zeros(len(column), np.bool_)
        bad[list(errors)] = True
        column = pc.if_else(pa.array(bad), pa.scalar(None, column.type), column)
    texts: list[str | None] = column.to_numpy(zero_copy_only=False).tolist()
    return texts


def is_words(kind: pa.DataType) -> bool:
    """Whether a column of this type holds lists of strings."""
    is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    return bool(is_list and (is_text(kind.value_type) or pa.types.is_null(kind.value_type)))


def as_text(column: pa.ChunkedArray) -> pa.ChunkedArray:
    if pa.types.is_dictionary(column.type):
        chunks = [c.dictionary.cast(pa.large_string(), safe=False).take(c.indices) for c in column.chunks]
        return pa.chunked_array(chunks, pa.large_string())
    return column if column.type == pa.large_string() else column.cast(pa.large_string(), safe=False)


def normalized(table: pa.Table, text_columns: Sequence[str]) -> tuple[pa.Table, dict[int, RowError]]:
    """The table with text as large_string, and an error for each row whose text is not UTF-8.

    Such a text goes on with U+FFFD for what is not UTF-8, so that the output can be read.
    """
    errors: dict[int, RowError] = {}
    for name in text_columns:
        text, broken = _checked_utf8(as_text(table[name]), name)
        errors |= broken
        table = table.set_column(table.schema.get_field_index(name), pa.field(name, text.type), text)
    return table.cast(with_large_strings(table.schema), safe=False), errors


def _checked_utf8(column: pa.ChunkedArray, name: str) -> tuple[pa.ChunkedArray, dict[int, RowError]]:
    """Parquet files carry bytes that are no UTF-8 unnoticed, until somebody decodes them."""
    try:
        column.validate(full=True)
    except pa.ArrowInvalid:
        values = column.cast(pa.large_binary()).to_pylist()
        found = {i: _decode_error(value) for i, value in enumerate(values)}
        errors = {i: RowError("invalid_utf8", f"column {name!r}: {e}") for i, e in found.items() if e}
        mended = [None if v is None else v.decode("utf-8", "replace") for v in values]
        return pa.chunked_array([mended], pa.large_string()), errors
    return column, {}


def _decode_error(value: bytes | None) -> str | None:
    try:
        (value or b"").decode()
    except UnicodeDecodeError as error:
        return f"byte {error.object[error.start]:#04x} at {error.start} is not UTF-8"
    return None


def text_bytes(table: pa.Table, text_columns: Sequence[str]) -> Int64s:
    """[n] bytes of text a row, over the text columns."""
    total = np.zeros(table.num_rows, np.int64)
    for name in text_columns:
        total += pc.binary_length(table[name]).fill_null(0).to_numpy()
    return total


def guess_text_column(schema: pa.Schema, asked: str | None, pair: str | None) -> str:
    """The column asked for, or the only one that can be meant. Raises UsageError listing the columns."""
    if not schema.names:
        raise UsageError("the input is empty: it has no rows and not even columns, so there is nothing to run")
    for role, name in (("--text-column", asked), ("--pair-column", pair)):
        if name is not None:
            check_text(schema, role, name)
    if asked is not None:
        return asked
    texts = [f.name for f in schema if is_text(f.type) and not is_json_text(f) and f.name not in (pair, RESCUED)]
    if len(texts) == 1:
        return texts[0]
    if "text" in texts:
        return "text"
    listing = ", ".join(f"{f.name} ({f.type})" for f in schema)
    many = f"columns {', '.join(texts)} could be meant" if texts else "no column holds text"
    raise UsageError(f"which column has the text? {many}. Say --text-column NAME. The input has: {listing}")


def check_text(schema: pa.Schema, role: str, name: str) -> None:
    """role: the flag that names the column. Raises UsageError where there is no such column of text."""
    if name not in schema.names:
        raise UsageError(f"{role} {name}: no such column; the input has {', '.join(schema.names)}")
    field = schema.field(name)
    if not is_text(field.type) or is_json_text(field):
        raise UsageError(f"{role} {name}: the column is {'JSON' if is_json_text(field) else field.type}, not text")


def list_error(value: Any) -> RowError | None:
    """Of a value that is no list of strings."""
    if not isinstance(value, list | tuple):
        return RowError("not_a_list", f"a {type(value).__name__}, not a list of strings")
    other = next((item for item in value if not isinstance(item, str)), "")
    if not isinstance(other, str):
        kind = "null" if other is None else type(other).__name__
        return RowError("not_text", f"a list with a {kind} in it, not of strings alone")
    if any(map(has_lone_surrogate, value)):
        return RowError("lone_surrogate", "one of the list's texts has half a surrogate pair, which is no character")
    return None
