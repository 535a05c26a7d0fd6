"""JSON lines. A line that came in as JSON goes out as it was, the predictions added at its end."""

from __future__ import annotations

import base64
import json
import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from packhorse.data import JSON_TEXT, RAW_LINE, RESCUED
from packhorse.stages import Writer


def make() -> Writer:
    return JsonlWriter()


class JsonlWriter:
    """One object a line, UTF-8, keys in column order."""

    extension = ".jsonl"

    def write(self, table: pa.Table, path: str) -> None:
        columns = [(f.name, _texts(f, table[f.name])) for f in table.schema if f.name != RAW_LINE]
        added = [(json.dumps(name, ensure_ascii=False), texts) for name, texts in columns]
        raw = table[RAW_LINE].to_pylist() if RAW_LINE in table.column_names else None
        with Path(path).open("w", encoding="utf-8", newline="\n") as file:
            for i in range(table.num_rows):
                body = ", ".join(f"{name}: {texts[i]}" for name, texts in added)
                file.write((f"{{{body}}}" if raw is None else _spliced(raw[i], body)) + "\n")

    def assemble(self, parts: Sequence[str], path: str) -> None:
        with Path(path).open("wb") as whole:
            for part in parts:
                with Path(part).open("rb") as file:
                    shutil.copyfileobj(file, whole, 1 << 20)


def _spliced(line: bytes, body: str) -> str:
    """The line's own bytes with the predictions at its end; a line that is no object stands as text."""
    text = line.decode("utf-8", "backslashreplace").strip()
    try:
        is_object = isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        is_object = False
    if not is_object:
        return f"{{{json.dumps(RESCUED)}: {json.dumps(text, ensure_ascii=False)}, {body}}}"
    inner = text[1:-1].strip()
    return f"{{{inner}{', ' if inner else ''}{body}}}"


def _texts(field: pa.Field, column: pa.ChunkedArray) -> list[str]:
    """Each value as JSON."""
    if field.metadata and JSON_TEXT.items() <= field.metadata.items():
        return [value if value is not None else "null" for value in column.to_pylist()]
    if pa.types.is_fixed_size_list(field.type) and pa.types.is_floating(field.type.value_type):
        return [text for chunk in column.chunks for text in _vector_texts(chunk)]
    if field.type == pa.float32():
        return [_shortest(np.float32(v)) if v is not None else "null" for v in column.to_pylist()]
    return [json.dumps(_plain(v), ensure_ascii=False, default=_foreign) for v in column.to_pylist()]


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


def _plain(value: Any) -> Any:
    """JSON has no NaN and no infinity: null, at any depth."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_plain(v) for v in value]
    return value


def _foreign(value: Any) -> str:
    """Bytes as base64, times as ISO 8601, decimals as digits."""
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    return value.isoformat() if hasattr(value, "isoformat") else str(value)
