"""Values given in Python as Arrow columns: what is no text, or no list of texts, is null and an error of its row."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from packhorse.data import RowError
from packhorse.readers.columns import has_lone_surrogate, list_error


def as_text_column(values: Sequence[Any], errors: dict[int, RowError]) -> pa.Array:
    """Values that should be texts as large_string; what is no text becomes null, and an error of its row."""
    clean = list(values)
    if set(map(type, clean)) <= {str, type(None)}:
        try:
            return pa.array(clean, pa.large_string())
        except UnicodeEncodeError:
            pass  # half a surrogate pair in one of them: found one by one below
    for i, value in enumerate(clean):
        error = _text_error(value)
        if error is not None:
            errors[i], clean[i] = error, None
    return pa.array(clean, pa.large_string())


def _text_error(value: Any) -> RowError | None:
    if value is None:
        return None
    if not isinstance(value, str):
        return RowError("not_text", f"a {type(value).__name__}, not a string")
    if has_lone_surrogate(value):
        return RowError("lone_surrogate", "the text has half a surrogate pair, which is no character")
    return None


def lists_column(values: Sequence[Any], errors: dict[int, RowError]) -> pa.Array:
    """Values that should be lists of strings as a list column; what is none becomes null, and an error of its row."""
    clean: list[list[str | None] | None] = []
    for i, value in enumerate(values):
        error = None if value is None else list_error(value)
        if error is not None:
            errors[i] = error
        clean.append(None if value is None or error is not None else list(value))
    return pa.array(clean, pa.list_(pa.large_string()))
