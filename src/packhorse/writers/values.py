"""Values as text, as the line formats have them in common."""

from __future__ import annotations

import base64
import math
from typing import Any

import numpy as np
import pyarrow as pa

from packhorse.data import is_json_text
from packhorse.jsontext import dumps


def json_texts(field: pa.Field, column: pa.ChunkedArray) -> list[str]:
    """Each value as JSON; a float that JSON has not is null, as a null is."""
    if is_json_text(field):
        return [value if value is not None else "null" for value in column.to_pylist()]
    if pa.types.is_fixed_size_list(field.type) and pa.types.is_floating(field.type.value_type):
        return [text for chunk in column.chunks for text in _vector_texts(chunk)]
    if field.type == pa.float32():
        return [_finite(np.float32(v)) if v is not None else "null" for v in column.to_pylist()]
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
