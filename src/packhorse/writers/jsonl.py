"""JSON lines. A line that came in as JSON goes out as it was, the predictions added at its end."""

from __future__ import annotations

import json
import shutil
from collections.abc import Container, Iterator, Sequence
from pathlib import Path

import pyarrow as pa

from packhorse.data import RAW_LINE, RESCUED
from packhorse.jsontext import dumps, is_strict
from packhorse.stages import Writer
from packhorse.writers.values import json_texts


def make() -> Writer:
    return JsonlWriter()


class JsonlWriter:
    """One object a line, UTF-8, keys in column order."""

    extension = ".jsonl"

    def files(self, name: str) -> tuple[str, ...]:
        return (name,)

    def write(self, table: pa.Table, paths: Sequence[str]) -> None:
        with Path(paths[0]).open("w", encoding="utf-8", newline="\n") as file:
            file.writelines(_lines(table))

    def assemble(self, parts: Sequence[Sequence[str]], paths: Sequence[str]) -> None:
        with Path(paths[0]).open("wb") as whole:
            for part, *_ in parts:
                with Path(part).open("rb") as file:
                    shutil.copyfileobj(file, whole, 1 << 20)

    def merge(self, part: Sequence[str], rows: Sequence[int], table: pa.Table, paths: Sequence[str]) -> None:
        new = dict(zip(rows, _lines(table), strict=True))
        with Path(part[0]).open("rb") as old, Path(paths[0]).open("wb") as merged:
            merged.writelines(new[i].encode() if i in new else line for i, line in enumerate(old))


def _lines(table: pa.Table) -> Iterator[str]:
    columns = {f.name: json_texts(f, table[f.name]) for f in table.schema if f.name != RAW_LINE}
    raw = table[RAW_LINE].to_pylist() if RAW_LINE in table.column_names else None
    names = [json.dumps(name, ensure_ascii=False) for name in columns]
    for i, texts in enumerate(zip(*columns.values(), strict=True)):
        body = ", ".join(f"{name}: {text}" for name, text in zip(names, texts, strict=True))
        yield (f"{{{body}}}" if raw is None else _spliced(raw[i], body, columns)) + "\n"


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
