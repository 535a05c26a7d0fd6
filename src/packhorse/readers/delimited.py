"""Rows of fields as text: what CSV and TSV have in common, once lines were cut into records.

A record with another number of fields than the header, one that is malformed and one that is not UTF-8 are error rows;
what stood there goes unchanged into `_rescued_data`, a column that is there when the first 16 MiB did not hold all
rows, or held such a row.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import NamedTuple, Protocol, Self

import numpy as np
import pyarrow as pa

from packhorse.data import RESCUED, Chunk, Int64s, Position, RowError
from packhorse.errors import InputError, UsageError
from packhorse.readers.lines import SAMPLE_BYTES, Block, LineReader, blocks, decode_error
from packhorse.readers.sources import OnWait, no_look


@dataclass(slots=True)
class Records:
    """The records of some lines: record i begins at line starts[i], ends before stops[i] and has widths[i] fields, none
    where it is in error; `used` lines were looked at. Fields are in one list for all records: a list for each would
    keep the garbage collector as busy as the parser."""

    fields: list[str]
    widths: list[int]
    starts: Sequence[int]
    stops: Sequence[int]
    errors: dict[int, RowError]
    used: int

    @classmethod
    def one_a_line(cls, fields: list[str], widths: list[int]) -> Self:
        count = len(widths)
        return cls(fields, widths, range(count), range(1, count + 1), {}, count)

    @property
    def num_rows(self) -> int:
        return len(self.widths)

    def first(self) -> list[str]:
        """Its fields."""
        return self.fields[: self.widths[0]]

    def column(self, i: int, width: int, is_bad: Container[int]) -> list[str | None]:
        """Field i of each record; None for the bad ones, while all others have that width."""
        if not is_bad:
            return [*self.fields[i::width]]
        begins = accumulate(self.widths, initial=i)
        return [
            None if row in is_bad else self.fields[at] for row, at in zip(range(self.num_rows), begins, strict=False)
        ]

    def add(self, row: list[str], stop: int) -> None:
        """The record from the lines used so far to `stop`; no fields: an empty line."""
        if row:
            self._append(row, stop)
        self.used = stop

    def add_error(self, error: RowError) -> None:
        """The next line is no record."""
        self.errors[self.num_rows] = error
        self._append([], self.used + 1)
        self.used += 1

    def _append(self, row: list[str], stop: int) -> None:
        assert isinstance(self.starts, list) and isinstance(self.stops, list)
        self.fields += row
        self.widths.append(len(row))
        self.starts.append(self.used)
        self.stops.append(stop)

    def without_first(self) -> Records:
        errors = {i - 1: error for i, error in self.errors.items() if i}
        return Records(
            self.fields[self.widths[0] :], self.widths[1:], self.starts[1:], self.stops[1:], errors, self.used
        )


class Parse(Protocol):
    """Lines into records. Unless the lines are the file's last, it leaves those of a record that may go on."""

    def __call__(self, lines: Sequence[str], marks: Int64s, is_last: bool) -> Records: ...


class Parsed(NamedTuple):
    block: Block
    records: Records
    is_utf8: bool

    def raw(self, row: int) -> bytes:
        """The record as it stands in the file, without the end of its last line."""
        start, stop = self.records.starts[row], self.records.stops[row]
        return b"".join(self.block.lines[start:stop]).rstrip(b"\r\n")


class DelimitedReader(LineReader):
    """Records of files with the same columns, in the order given. A mark is a byte offset in its file."""

    def __init__(
        self, files: Sequence[str], parse: Parse, has_header: bool, rows_are_lines: bool, on_wait: OnWait = no_look
    ) -> None:
        """Raises InputError where headers differ, UsageError for names that columns cannot have."""
        super().__init__(files, on_wait)
        self._parse, self._has_header, self.rows_are_lines = parse, has_header, rows_are_lines
        self._names = self._header() if has_header else self._numbered()
        self._has_rescued = not self._sample_is_all()

    def schema(self) -> pa.Schema:
        names = [*self._names, RESCUED] if self._has_rescued and self._names else self._names
        return pa.schema([(name, pa.large_string()) for name in names])

    def read(self, start: Position, columns: Sequence[str], text_columns: Sequence[str]) -> Iterator[Chunk]:
        """Chunks from a position on. Raises InputError naming the file that cannot be read, and ChangedError."""
        wanted = list(dict.fromkeys([*columns, *text_columns]))
        for file in range(start.file, len(self.files)):
            for parsed in self._rows(file, start if file == start.file else Position(file, 0)):
                yield self._chunk(parsed, file, wanted)

    def _rows(self, file: int, start: Position) -> Iterator[Parsed]:
        is_header_next = self._has_header and not start.mark
        for parsed in self._parsed(file, start):
            if parsed.records.num_rows and is_header_next:
                parsed, is_header_next = parsed._replace(records=parsed.records.without_first()), False
            if parsed.records.num_rows:
                yield parsed

    def _parsed(self, file: int, start: Position) -> Iterator[Parsed]:
        left: Block | None = None
        for block in blocks(self._sources[file], start.mark, start.check):
            whole = left.joined(block) if left else block
            parsed = self._records(whole, is_last=False)
            yield parsed
            left = whole.after(parsed.records.used) if parsed.records.used < len(whole.lines) else None
        if left:
            yield self._records(left, is_last=True)

    def _records(self, block: Block, is_last: bool) -> Parsed:
        lines, is_utf8 = _decoded(block.lines)
        return Parsed(block, self._parse(lines, block.marks, is_last), is_utf8)

    def _chunk(self, parsed: Parsed, file: int, wanted: list[str]) -> Chunk:
        block, records, errors = parsed.block, parsed.records, self._errors(parsed)
        width, count, named = len(self._names), records.num_rows, set(wanted)
        arrays = {
            name: pa.array(records.column(i, width, errors), pa.large_string())
            for i, name in enumerate(self._names)
            if name in named
        }
        if RESCUED in wanted:
            raw = [parsed.raw(i).decode("utf-8", "backslashreplace") if i in errors else None for i in range(count)]
            arrays[RESCUED] = pa.array(raw, pa.large_string())
        where = np.array([*records.starts, records.used])
        starts, stops = block.marks[where[:-1]], block.marks[np.asarray(records.stops)]
        table = pa.table({name: arrays[name] for name in wanted})
        return Chunk(table, file, block.marks[where], stops - starts, errors, block.checks_at(where))

    def _errors(self, parsed: Parsed) -> dict[int, RowError]:
        errors, width = dict(parsed.records.errors), len(self._names)
        for i, seen in enumerate(parsed.records.widths):
            if seen != width and i not in errors:
                message = f"{seen} fields, where the file has {width} columns"
                errors[i] = RowError("wrong_number_of_fields", message)
        if not parsed.is_utf8:
            messages = [decode_error(parsed.raw(i), "record") for i in range(parsed.records.num_rows)]
            errors |= {i: RowError("invalid_utf8", message) for i, message in enumerate(messages) if message}
        return errors

    # -- what the columns are

    def _header(self) -> list[str]:
        """The first record of every file, the same in all; a file without any line has no rows and needs none."""
        first: tuple[str, list[str]] | None = None
        for file, address in enumerate(self.files):
            names = self._first_record(file)
            if first is None and names is not None:
                first = address, names
            elif first is not None and names is not None and names != first[1]:
                raise InputError(f"{address}: its header is not that of {first[0]}: {_difference(first[1], names)}")
        return _checked(*first) if first else []

    def _first_record(self, file: int) -> list[str] | None:
        for parsed in self._parsed(file, Position(file, 0)):
            if parsed.records.num_rows:
                error = parsed.records.errors.get(0)
                message = decode_error(parsed.raw(0), "line") or (error and error.message)
                if message:
                    raise InputError(f"{self.files[file]}: its first line is no header: {message}; see --no-header")
                return parsed.records.first()
        return None

    def _numbered(self) -> list[str]:
        """As many as the first record has fields that is none in error. Raises InputError where all are."""
        bad: str | None = None
        for file, address in enumerate(self.files):
            for parsed in self._parsed(file, Position(file, 0)):
                if width := next(filter(None, parsed.records.widths), 0):
                    return [f"column_{i}" for i in range(width)]
                for error in parsed.records.errors.values():
                    bad = bad or f"{address}: no record of the input is well formed; the first: {error.message}"
        if bad:
            raise InputError(bad)
        return []

    def _sample_is_all(self) -> bool:
        """Whether the first 16 MiB hold all rows, and none of them is in error."""
        left = SAMPLE_BYTES
        for file in range(len(self.files)):
            for parsed in self._rows(file, Position(file, 0)):
                left -= int(parsed.block.marks[parsed.records.used] - parsed.block.marks[0])
                if left <= 0 or self._errors(parsed):
                    return False
        return True


def _decoded(lines: list[bytes]) -> tuple[list[str], bool]:
    """As text, and whether all of it is UTF-8. Other bytes stay apart as lone surrogates, so that commas and quotes are
    found between them."""
    try:
        return list(map(bytes.decode, lines)), True
    except UnicodeDecodeError:
        return [line.decode("utf-8", "surrogateescape") for line in lines], False


def _checked(address: str, names: list[str]) -> list[str]:
    twice = [name for name, count in Counter(names).items() if count > 1]
    what = None
    if "" in names:
        what = f"column {names.index('') + 1} has no name"
    elif twice:
        what = f"two columns are named {twice[0]!r}"
    elif RESCUED in names:
        what = f"a column is named {RESCUED!r}, as one that packhorse makes"
    if what:
        raise UsageError(f"{address}: {what}; mend the first line, or say --no-header if it is a row like the others")
    return names


def _difference(first: list[str], other: list[str]) -> str:
    if len(first) != len(other):
        return f"{len(first)} columns there, {len(other)} here"
    return "; ".join(f"{a!r} there, {b!r} here" for a, b in zip(first, other, strict=True) if a != b)
