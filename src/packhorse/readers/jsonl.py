"""JSON lines: split by line, each line parsed alone, a byte offset a row.

A field is a string where any row of the sample (the first 16 MiB) has one, else the bool, int64 or float64 that
all rows share; anything else, nested values too, becomes JSON text. A value that does not fit its field's type,
a field that the sample did not have, and a line that is no JSON object go unchanged into `_rescued_data`, as JSON
text: a column that is there when the sample did not see all rows, or saw such a row. Blank lines are not rows.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from packhorse.data import JSON_TEXT, RAW_LINE, RESCUED, Chunk, Position, RowError
from packhorse.errors import UsageError
from packhorse.jsontext import dumps
from packhorse.readers.columns import has_lone_surrogate
from packhorse.readers.lines import SAMPLE_BYTES, Block, LineReader, decode_error
from packhorse.readers.sources import OnWait, no_look
from packhorse.stages import Reader

EXTENSIONS = (".jsonl", ".ndjson")
READS_LINES = True
TAKES_COLUMNS = True  # so that rows of later files are typed as those of the first
MAX_EXACT_FLOAT = 1 << 53
DECODER = json.JSONDecoder()


class Line(NamedTuple):
    value: dict[str, Any] | None  # None: not a JSON object
    error: RowError | None
    raw: bytes


def open_files(files: Sequence[str], columns: pa.Schema | None = None, on_wait: OnWait = no_look) -> Reader:
    return JsonlReader(files, columns, on_wait)


class JsonlReader(LineReader):
    """Rows of JSON-lines files, in the order given. A mark is a byte offset in its file."""

    raw_column: str | None = RAW_LINE

    def __init__(self, files: Sequence[str], columns: pa.Schema | None = None, on_wait: OnWait = no_look) -> None:
        """columns: those that the rows are to have, with `_rescued_data` besides; None: as the sample says."""
        super().__init__(files, on_wait)
        self.sampled = self._sample_schema()
        rescued = pa.field(RESCUED, pa.large_string())
        names = columns.names if columns is not None else []
        self._schema = (columns if RESCUED in names else columns.append(rescued)) if columns else self.sampled

    def schema(self) -> pa.Schema:
        return self._schema

    def read(self, start: Position, columns: Sequence[str], text_columns: Sequence[str]) -> Iterator[Chunk]:
        """Chunks from a position on. Raises InputError naming the file that cannot be read, and ChangedError."""
        wanted = list(dict.fromkeys([*columns, *text_columns]))
        for file, block in self._blocks(start):
            full = _without_blank_lines(block)
            if full.lines:
                yield self._chunk(full, file, wanted, text_columns)

    def _chunk(self, block: Block, file: int, wanted: list[str], text_columns: Sequence[str]) -> Chunk:
        lines = [_parse(line) for line in block.lines]
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
        row_bytes = np.fromiter(map(len, block.lines), np.int64, len(block.lines))
        return Chunk(table.cast(pa.schema(fields)), file, block.marks, row_bytes, errors, block.checks)

    def _rescued_column(self, lines: list[Line], rescued: list[dict[str, Any]]) -> list[str | None]:
        known = set(self._schema.names) - {RESCUED}
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
        for _, block in self._blocks(Position(0, 0)):
            for row in map(_object, _without_blank_lines(block.within(left)).lines):
                is_clean &= row is not None
                for name, value in (row or {}).items():
                    values.setdefault(name, []).append(value)
            left -= block.num_bytes
            if left <= 0:
                break
        for name in (RAW_LINE, RESCUED):
            if name in values:
                raise UsageError(f"{self.files[0]}: the field {name!r} has a name that packhorse uses; rename it")
        fields = [_field(name, seen) for name, seen in values.items() if not has_lone_surrogate(name)]
        is_whole = left > 0 and len(fields) == len(values)
        fits = is_whole and is_clean and all(_all_fit(f, values[f.name]) for f in fields)
        return pa.schema(fields if fits else [*fields, pa.field(RESCUED, pa.large_string())])


def _without_blank_lines(block: Block) -> Block:
    """They belong to the row before; those before the first row to none."""
    full = [i for i, line in enumerate(block.lines) if not line.isspace()]
    where = np.array([*full, len(block.lines)])
    return Block([block.lines[i] for i in full], block.marks[where], block.checks_at(where))


def _json(text: str) -> Any:
    """What json.loads gives, for most lines without its looking for spaces, which takes as long as the parsing."""
    try:
        value, end = DECODER.raw_decode(text)
    except ValueError:
        return json.loads(text)
    return value if text[end:] in ("\n", "\r\n", "") else json.loads(text)


def _object(line: bytes) -> dict[str, Any] | None:
    """Of _parse the value alone: a resumed run waits for the sample."""
    try:
        value = _json(line.decode())
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _parse(line: bytes) -> Line:
    try:
        value = _json(line.decode())
    except UnicodeDecodeError:
        return Line(None, RowError("invalid_utf8", str(decode_error(line, "line"))), line.strip())
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
