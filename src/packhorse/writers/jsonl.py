"""JSON lines. A line that came in as JSON goes out as it was, the predictions added at its end."""

from __future__ import annotations

import base64
import json
import math
import shutil
from collections.abc import Container, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from packhorse.data import RAW_LINE, RESCUED, is_json_text
from packhorse.jsontext import dumps, is_strict
from packhorse.stages import Writer


def make() -> Writer:
    return JsonlWriter()


class JsonlWriter:
    """One object a line, UTF-8, keys in column order."""

    extension = ".jsonl"

    def write(self, table: pa.Table, path: str) -> None:
        columns = {f.name: _texts(f, table[f.name]) for f in table.schema if f.name != RAW_LINE}
        raw = table[RAW_LINE].to_pylist() if RAW_LINE in table.column_names else None
        names = [json.dumps(name, ensure_ascii=False) for name in columns]
        with Path(path).open("w", encoding="utf-8", newline="\n") as file:
            for i, texts in enumerate(zip(*columns.values(), strict=True)):
                body = ", ".join(f"{name}: {text}" for name, text in zip(names, texts, strict=True))
                file.write((f"{{{body}}}" if raw is None else _spliced(raw[i], body, columns)) + "\n")

    def assemble(self, parts: Sequence[str], path: str) -> None:
        with Path(path).open("wb") as whole:
            for part in parts:
                with Path(part).open("rb") as file:
                    shutil.copyfileobj(file, whole, 1 << 20)


def _spliced(line: bytes, body: str, added: Container[str]) -> str:
    """The line as it stands with the predictions at its end.

    A line that is no JSON object, in the standard's sense, or has a field named like a prediction, is written anew:
    what can be read of it, and the line itself as text in `_rescued_data`.
    """
    text = line.decode("utf-8", "backslashreplace").strip()
    try:
        value = json.loads(line.decode())
    except (ValueError, RecursionError):
        value = None
    fields = value if isinstance(value, dict) else {}
    if isinstance(value, dict) and is_strict(text) and not any(name in added for name in fields):
        inner = text[1:-1].strip()
        return f"{{{inner}{', ' if inner else ''}{body}}}"
    kept = {k: v for k, v in fields.items() if k not in added} | {RESCUED: text}
    return f"{dumps(kept)[:-1]}, {body}}}"


def _texts(field: pa.Field, column: pa.ChunkedArray) -> list[str]:
    """Each value as JSON."""
    if is_json_text(field):
        return [value if value is not None else "null" for value in column.to_pylist()]
    if pa.types.is_fixed_size_list(field.type) and pa.types.is_floating(field.type.value_type):
        return [text for chunk in column.chunks for text in _vector_texts(chunk)]
    if field.type == pa.float32():
        return [_shortest(np.float32(v)) if v is not None else "null" for v in column.to_pylist()]
    return [dumps(v, default=_foreign, ensure_ascii=False) for v in _values(column)]


def _values(column: pa.ChunkedArray) -> list[Any]:
    try:
        values: list[Any] = column.to_pylist()
    except UnicodeDecodeError:  # strings that are no UTF-8 pass through Parquet, but not through JSON
        values = [v and v.decode("utf-8", "replace") for v in column.cast(pa.large_binary()).to_pylist()]
    except (ValueError, OverflowError):  # nanoseconds, and times that Python's datetime has not
        values = [v and v.replace(" ", "T") for v in column.cast(pa.large_string()).to_pylist()]
    return values


def _vector_texts(chunk: pa.FixedSizeListArray) -> list[str]:
    width = chunk.type.list_size
    flat = (
        chunk.values.slice(chunk.offset * width, len(chunk) * width).to_numpy(zero_copy_only=False).reshape(-1, width)
    )
    valid = chunk.is_valid().to_pylist()
    return ["[" + ", ".join(map(_shortest, row)) + "]" if ok else "null" for row, ok in zip(flat, valid, strict=True)]


def _shortest(value: Any) -> str:
    """The shortest digits that read back as the same float32 or float16."""
    return str(value) if math.isfinite(value) else "null"


def _foreign(value: Any) -> str:
    """Bytes as base64, times as ISO 8601, decimals as digits."""
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    return value.isoformat() if hasattr(value, "isoformat") else str(value)
