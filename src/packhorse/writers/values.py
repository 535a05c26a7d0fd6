"""Values as text, as the line formats have them in common."""

from __future__ import annotations

import base64
import math
from itertools import accumulate
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from packhorse.data import is_json_text
from packhorse.jsontext import dumps


def json_texts(field: pa.Field, column: pa.ChunkedArray) -> list[str]:
    """Each value as JSON; a float that JSON has not is null, as a null is."""
    if is_json_text(field):
        return [value if value is not None else "null" for value in column.to_pylist()]
    if pa.types.is_fixed_size_list(field.type) and pa.types.is_floating(field.type.value_type):
        return [text for chunk in column.chunks for text in _vector_texts(chunk)]
    if field.type in (pa.float32(), pa.float16()):
        number = np.dtype(field.type.to_pandas_dtype()).type
        return [_finite(number(v)) if v is not None else "null" for v in column.to_pylist()]
    if _is_list_of_numbers(field.type):
        return [text for chunk in column.chunks for text in _list_texts(chunk)]
    return [dumps(v, default=foreign, ensure_ascii=False) for v in python_values(column)]


def python_values(column: pa.ChunkedArray) -> list[Any]:
    """Each value as a Python object; what Python has no object for, as text."""
    try:
        values: list[Any] = column.to_pylist()
    except UnicodeDecodeError:  # strings that are no UTF-8 pass through Parquet, but not through text
        values = [v and v.decode("utf-8", "replace") for v in column.cast(pa.large_binary()).to_pylist()]
    except (ValueError, OverflowError):  # nanoseconds, and times that Python's datetime has not
        values = [v and v.replace(" ", "T") for v in column.cast(pa.large_string()).to_pylist()]
    return values


def foreign(value: Any) -> str:
    """Bytes as base64, times as ISO 8601, decimals as digits."""
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    return value.isoformat() if hasattr(value, "isoformat") else str(value)


def _is_list_of_numbers(kind: pa.DataType) -> bool:
    """Of float32 or float16, or of vectors of them: their digits are not those of Python's floats."""
    if not (pa.types.is_list(kind) or pa.types.is_large_list(kind)):
        return False
    inner = kind.value_type.value_type if pa.types.is_fixed_size_list(kind.value_type) else kind.value_type
    return inner in (pa.float32(), pa.float16())


def _list_texts(chunk: pa.ListArray) -> list[str]:
    values = pa.chunked_array([chunk.flatten()])
    parts = json_texts(pa.field("", chunk.type.value_type), values)
    lengths = [n or 0 for n in pc.list_value_length(chunk).to_pylist()]
    ends = list(accumulate(lengths, initial=0))
    valid = chunk.is_valid().to_pylist()
    return [
        "[" + ", ".join(parts[a:b]) + "]" if ok else "null" for a, b, ok in zip(ends, ends[1:], valid, strict=False)
    ]


def _vector_texts(chunk: pa.FixedSizeListArray) -> list[str]:
    width = chunk.type.list_size
    flat = (
        chunk.values.slice(chunk.offset * width, len(chunk) * width).to_numpy(zero_copy_only=False).reshape(-1, width)
    )
    valid = chunk.is_valid().to_pylist()
    return ["[" + ", ".join(map(_finite, row)) + "]" if ok else "null" for row, ok in zip(flat, valid, strict=True)]


def _finite(value: Any) -> str:
    """The shortest digits that read back as the same float32 or float16."""
    return str(value) if math.isfinite(value) else "null"
