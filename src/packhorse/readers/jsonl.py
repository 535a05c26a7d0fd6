"""JSON lines: split by line, each line parsed alone, a byte offset a row.

A field is a string where any row of the sample (the first 16 MiB) has one, else the bool, int64 or float64 that
all rows share; anything else, nested values too, becomes JSON text. A value that does not fit its field's type,
a field that the sample did not have, and a line that is no JSON object go unchanged into `_rescued_data`, as JSON
text: a column that is there when the sample did not see all rows, or saw such a row. Blank lines are not rows.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from packhorse.data import JSON_TEXT, RAW_LINE, RESCUED, Chunk, Int64s, Position, RowError
from packhorse.errors import InputError, UsageError
from packhorse.files import fingerprint
from packhorse.jsontext import dumps
from packhorse.readers.columns import has_lone_surrogate
from packhorse.readers.sample import even_rows
from packhorse.stages import Reader

EXTENSIONS = (".jsonl", ".ndjson")
SAMPLE_BYTES = 16 << 20
BLOCK_BYTES = 4 << 20
FIRST_BLOCK_BYTES = 256 << 10  # who reads a few rows here and there parses no more
MAX_EXACT_FLOAT = 1 << 53


class Line(NamedTuple):
    value: dict[str, Any] | None  # None: not a JSON object
    error: RowError | None
    raw: bytes


def open_files(files: Sequence[str]) -> Reader:
    return JsonlReader(files)


class JsonlReader:
    """Rows of JSON-lines files, in the order given. A mark is a byte offset in its file."""

    raw_column: str | None = RAW_LINE

    def __init__(self, files: Sequence[str]) -> None:
        self.files = files
        self._sizes = [Path(f).stat().st_size for f in files]
        self._schema = self._sample_schema()

    def schema(self) -> pa.Schema:
        return self._schema

    def num_rows(self) -> int | None:
        return None

    def progress(self, position: Position) -> float:
        """Share of the bytes before a position, 0 to 1."""
        return (sum(self._sizes[: position.file]) + position.mark) / max(sum(self._sizes), 1)

    def fingerprint(self) -> list[dict[str, object]]:
        return [fingerprint(f) for f in self.files]

    def spread(self, places: int) -> list[Position]:
        """Where the line begins that follows each of the evenly spaced bytes."""
        positions = even_rows(self._sizes, places)
        return list(dict.fromkeys(Position(p.file, _line_start(self.files[p.file], p.mark)) for p in positions))

    def read(self, start: Position, columns: Sequence[str], text_columns: Sequence[str]) -> Iterator[Chunk]:
        """Chunks from a position on. Raises InputError naming the file that cannot be read."""
        wanted = list(dict.fromkeys([*columns, *text_columns]))
        for file in range(start.file, len(self.files)):
            mark = start.mark if file == start.file else 0
            for lines, marks in _blocks(self.files[file], mark):
                yield self._chunk(lines, marks, file, wanted, text_columns)

    def _chunk(
        self, raw: list[bytes], marks: Int64s, file: int, wanted: list[str], text_columns: Sequence[str]
    ) -> Chunk:
        lines = [_parse(line) for line in raw]
        errors = {i: line.error for i, line in enumerate(lines) if line.error}
        rescued: list[dict[str, Any]] = [{} for _ in lines]
        arrays = {}
        for name in wanted:
            if name == RAW_LINE:
                arrays[name] = pa.array([line.raw for line in lines], pa.large_binary())
            elif name != RESCUED:
                values = [line.value.get(name) if line.value else None for line in lines]
                arrays[name] = _column(values, self._schema.field(name), rescued)
                if name in text_columns:
                    errors = {i: _text_error(name, row[name]) for i, row in enumerate(rescued) if name in row} | errors
        if RESCUED in wanted:
            arrays[RESCUED] = pa.array(self._rescued_column(lines, rescued), pa.large_string())
        table = pa.table({name: arrays[name] for name in wanted})
        fields = [self._schema.field(n) if n != RAW_LINE else pa.field(n, pa.large_binary()) for n in wanted]
        row_bytes = np.fromiter(map(len, raw), np.int64, len(raw))
        return Chunk(table.cast(pa.schema(fields)), file, marks, row_bytes, errors)

    def _rescued_column(self, lines: list[Line], rescued: list[dict[str, Any]]) -> list[str | None]:
        known = set(self._schema.names)
        column: list[str | None] = []
        for line, misfits in zip(lines, rescued, strict=True):
            if line.value is None:
                column.append(line.raw.decode("utf-8", "backslashreplace"))
                continue
            if not known.issuperset(line.value):
                misfits = misfits | {k: v for k, v in line.value.items() if k not in known}
            column.append(dumps(misfits) if misfits else None)
        return column

    def _sample_schema(self) -> pa.Schema:
        values: dict[str, list[Any]] = {}
        left, is_clean = SAMPLE_BYTES, True
        for path in self.files:
            for lines, marks in _blocks(path, 0):
                for line in map(_parse, lines):
                    is_clean &= line.value is not None
                    for name, value in (line.value or {}).items():
                        values.setdefault(name, []).append(value)
                left -= int(marks[-1] - marks[0])
                if left <= 0:
                    break
            if left <= 0:
                break
        for name in (RAW_LINE, RESCUED):
            if name in values:
                raise UsageError(f"{self.files[0]}: the field {name!r} has a name that packhorse uses; rename it")
        fields = [_field(name, seen) for name, seen in values.items() if not has_lone_surrogate(name)]
        is_whole = left > 0 and len(fields) == len(values)
        fits = is_whole and is_clean and all(_all_fit(f, values[f.name]) for f in fields)
        return pa.schema(fields if fits else [*fields, pa.field(RESCUED, pa.large_string())])


def _blocks(path: str, mark: int) -> Iterator[tuple[list[bytes], Int64s]]:
    """Whole lines of about BLOCK_BYTES with their offsets [n + 1]; blank lines belong to the row before."""
    try:
        with Path(path).open("rb") as file:
            if mark == 0 and file.read(3) != b"\xef\xbb\xbf":
                file.seek(0)
            if mark:
                file.seek(mark)
            size = FIRST_BLOCK_BYTES
            while lines := file.readlines(size):
                size = BLOCK_BYTES
                end = file.tell()
                starts = end - sum(map(len, lines)) + np.cumsum([0, *map(len, lines)], dtype=np.int64)
                full = [i for i, line in enumerate(lines) if not line.isspace()]
                if full:
                    marks = np.append(starts[full], end)
                    yield [lines[i] for i in full], marks
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error}") from error


def _line_start(path: str, byte: int) -> int:
    """Of the first line that begins at a byte or after it; the file's end where there is none."""
    if not byte:
        return 0
    try:
        with Path(path).open("rb") as file:
            file.seek(byte - 1)
            file.readline()
            return file.tell()
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error}") from error


def _parse(line: bytes) -> Line:
    try:
        value = json.loads(line.decode())
    except UnicodeDecodeError as error:
        seen = error.object[error.start]
        return Line(
            None,
            RowError("invalid_utf8", f"byte {seen:#04x} at {error.start} of the line is not UTF-8"),
            line.strip(),
        )
    except (ValueError, RecursionError) as error:
        return Line(None, RowError("invalid_json", f"the line is not JSON: {error}"), line.strip())
    if not isinstance(value, dict):
        return Line(
            None,
            RowError("invalid_json", f"the line is a JSON {type(value).__name__}, not an object"),
            line.strip(),
        )
    return Line(value, None, line.strip())


def _field(name: str, values: list[Any]) -> pa.Field:
    kinds = set(map(type, values)) - {type(None)}
    if str in kinds:
        return pa.field(name, pa.large_string())
    if kinds == {bool}:
        return pa.field(name, pa.bool_())
    if kinds == {int} and all(v is None or -(1 << 63) <= v < 1 << 63 for v in values):
        return pa.field(name, pa.int64())
    if kinds in ({float}, {int, float}) and all(type(v) is not int or abs(v) <= MAX_EXACT_FLOAT for v in values):
        return pa.field(name, pa.float64())
    return pa.field(name, pa.large_string(), metadata=JSON_TEXT)


def _all_fit(field: pa.Field, values: list[Any]) -> bool:
    return bool(field.metadata) or all(v is None or _fits(v, field.type) for v in values)


def _column(values: list[Any], field: pa.Field, rescued: list[dict[str, Any]]) -> pa.Array:
    """Values of one field; what does not fit becomes null here and goes into `rescued`."""
    if field.metadata:
        return pa.array([None if v is None else dumps(v) for v in values], field.type)
    kinds = set(map(type, values)) - {type(None)}
    try:
        if kinds <= _python_types(field.type):
            return pa.array(values, field.type)
    except (UnicodeEncodeError, pa.ArrowException, OverflowError):
        pass  # one value of the column does not fit its type: looked at one by one below
    fitting = list(values)
    for i, value in enumerate(values):
        if value is not None and not _fits(value, field.type):
            rescued[i][field.name] = value
            fitting[i] = None
    return pa.array(fitting, field.type)


def _python_types(kind: pa.DataType) -> set[type]:
    if kind == pa.float64():
        return {float, int}
    return {{pa.bool_(): bool, pa.int64(): int}.get(kind, str)}


def _fits(value: Any, kind: pa.DataType) -> bool:
    if type(value) not in _python_types(kind):
        return False
    if kind == pa.int64():
        return bool(-(1 << 63) <= value < 1 << 63)
    if kind == pa.float64():
        return type(value) is float or abs(value) <= MAX_EXACT_FLOAT
    return type(value) is not str or not has_lone_surrogate(value)


def _text_error(name: str, value: Any) -> RowError:
    if isinstance(value, str):
        return RowError("lone_surrogate", f"column {name!r} has half a surrogate pair, which is no character")
    return RowError("not_text", f"column {name!r} is a JSON {type(value).__name__}, not a string")
