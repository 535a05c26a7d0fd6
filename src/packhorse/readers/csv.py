"""CSV as RFC 4180 has it: fields in quotes may hold the delimiter, line ends and doubled quotes.

Every column is a string, exactly as in the file: "01234" and "NA" stay what they are, spaces too, and an empty field is
the empty string, quoted or not. A quote inside a field that does not begin with one is a character. A line without any
character is no row.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from functools import partial
from itertools import chain, islice
from typing import NamedTuple

from packhorse.data import Int64s, RowError
from packhorse.errors import UsageError
from packhorse.readers.delimited import DelimitedReader, Records
from packhorse.readers.sources import OnWait, no_look
from packhorse.stages import Reader

EXTENSIONS = (".csv",)
READS_LINES = True
SETTINGS = ("delimiter", "header")
FEW_ROWS = 256  # lists of fields that live at the same time: the garbage collector wakes up at 700
MAX_RECORD_BYTES = 64 << 20  # of a record of several lines: a quote that is not closed would take the rest of the file


def open_files(
    files: Sequence[str], delimiter: str | None = None, header: bool = True, on_wait: OnWait = no_look
) -> Reader:
    """Raises UsageError for a delimiter that cannot be one."""
    between = {None: ",", "\\t": "\t"}.get(delimiter, delimiter)
    if between is None or len(between) != 1 or between in '"\r\n':
        raise UsageError(f"--delimiter {delimiter!r}: legal is one character, no quote and no line end; \\t is a tab")
    return DelimitedReader(files, partial(parse, delimiter=between), header, rows_are_lines=False, on_wait=on_wait)


def parse(lines: Sequence[str], marks: Int64s, is_last: bool, delimiter: str) -> Records:
    """The records that are whole within these lines; `used` is the line where the first one that is not begins.

    A malformed record is an error of its first line alone, and reading goes on at the next line: what a stray quote
    seems to open may be all the rest of the file.
    """
    if (records := _one_a_line(lines, delimiter)) is not None:
        return records
    return _Scan(lines, marks, is_last, delimiter).records()


def _one_a_line(lines: Sequence[str], delimiter: str) -> Records | None:
    """The records where each line is one, as in most files: three times as fast as one by one."""
    fields: list[str] = []
    widths: list[int] = []
    rest = csv.reader(lines, delimiter=delimiter, strict=True)
    try:
        while rows := list(islice(rest, FEW_ROWS)):
            fields.extend(chain.from_iterable(rows))
            widths.extend(map(len, rows))
    except csv.Error:
        return None
    return Records.one_a_line(fields, widths) if len(widths) == len(lines) and all(widths) else None


class _Failure(NamedTuple):
    """A record of several lines that was given up. All of them but the first begin within its quotes, so that another
    record that gets there ends as it did: lines are not looked through again for each stray quote among them."""

    stop: int = 0  # the line after its last one
    is_open: bool = False  # whether the lines end within its quotes
    is_record: bool = False  # but one of more than MAX_RECORD_BYTES


class _Scan:
    """Lines on their way to records, one by one."""

    def __init__(self, lines: Sequence[str], marks: Int64s, is_last: bool, delimiter: str) -> None:
        self._lines, self._marks, self._is_last, self._delimiter = lines, marks, is_last, delimiter
        self._found = Records([], [], [], [], {}, 0)
        self._failure = _Failure()

    def records(self) -> Records:
        while self._found.used < len(self._lines):
            if not self._take_well_formed() and not self._take_one():
                break
        return self._found

    def _num_bytes(self, stop: int) -> int:
        """Of the record that is next, if it ends there."""
        return int(self._marks[stop] - self._marks[self._found.used])

    def _is_in_failure(self) -> bool:
        """Whether the record that is next ends as the failure did, if it is one of several lines."""
        return self._found.used + 1 < self._failure.stop

    def _take_well_formed(self) -> bool:
        """By Python's parser; False where it met a record that it refuses: malformed, or with a field beyond the limit
        of 131,072 characters, which belongs to the whole process and is not ours to raise."""
        first, end = self._found.used, len(self._lines)
        if self._is_in_failure():
            end = min(first + FEW_ROWS, end)  # it would follow each stray quote to the end
        rest = csv.reader(map(self._lines.__getitem__, range(first, end)), delimiter=self._delimiter, strict=True)
        try:
            for row in rest:
                stop = first + rest.line_num
                if stop - self._found.used > 1 and self._num_bytes(stop) > MAX_RECORD_BYTES:
                    return False
                self._found.add(row, stop)
        except csv.Error:
            return False  # _take_one finds out why
        return True

    def _take_one(self) -> bool:
        """The record that is next; False where more lines are needed to tell."""
        row, seen = self._next()
        num_bytes, is_one_line = self._num_bytes(seen.stop), seen.stop == self._found.used + 1
        if row is None and seen.is_open and not self._is_last and num_bytes <= MAX_RECORD_BYTES:
            return False
        if row is not None and (is_one_line or num_bytes <= MAX_RECORD_BYTES):
            self._found.add(row, seen.stop)
            return True
        self._failure = max(self._failure, seen)  # the one that reaches further
        self._found.add_error(_error(is_one_line and not seen.is_open, int(self._marks[self._found.used])))
        return True

    def _next(self) -> tuple[list[str] | None, _Failure]:
        """The fields of the record that is next, None where it is given up; and what is to be known of it then."""
        begin, failure = self._found.used, self._failure
        if self._is_in_failure():
            line = _Cursor(self._lines, begin, self._delimiter, begin + 1)
            row = line.record()
            if not line.is_open:
                return row, _Failure(line.stop)
            if not failure.is_record or self._num_bytes(failure.stop) > MAX_RECORD_BYTES:
                return None, failure
        cursor = _Cursor(self._lines, begin, self._delimiter, len(self._lines))
        row = cursor.record()
        return row, _Failure(cursor.stop, cursor.is_open, row is not None)


def _error(is_in_line: bool, mark: int) -> RowError:
    if is_in_line:
        return RowError("invalid_csv", "a quoted field goes on after its closing quote, or a \\r stands in a field")
    return RowError(
        "unclosed_quote",
        f"a quote that opens in the line at byte {mark:,} is not closed at the end of a field within "
        f"{MAX_RECORD_BYTES >> 20} MiB",
    )


class _Cursor:
    """A place in the lines of one record, by the same rules as Python's parser with strict=True."""

    def __init__(self, lines: Sequence[str], begin: int, delimiter: str, end: int) -> None:
        """end: the line that is not looked at any more."""
        self.lines, self.stop, self.delimiter, self.end = lines, begin + 1, delimiter, end
        self.line, self.at = lines[begin], 0
        self.is_open = False  # whether the lines end within quotes

    def record(self) -> list[str] | None:
        """The fields, `stop` being the line after them; None where it is malformed or open."""
        fields = []
        while True:
            field = self._quoted() if self.line.startswith('"', self.at) else self._plain()
            if field is None:
                return None
            fields.append(field)
            if not self.line.startswith(self.delimiter, self.at):
                return fields if self._is_at_end() else None
            self.at += 1

    def _plain(self) -> str | None:
        end = self.line.find(self.delimiter, self.at)
        field = self.line[self.at : end] if end >= 0 else self.line[self.at :].rstrip("\r\n")
        self.at += len(field)
        return None if "\r" in field else field

    def _quoted(self) -> str | None:
        pieces: list[str] = []
        self.at += 1
        while True:
            quote = self.line.find('"', self.at)
            if quote < 0:
                pieces.append(self.line[self.at :])
                if self.stop == self.end:
                    self.is_open = True
                    return None
                self.line, self.at, self.stop = self.lines[self.stop], 0, self.stop + 1
            elif self.line.startswith('"', quote + 1):
                pieces.append(self.line[self.at : quote + 1])
                self.at = quote + 2
            else:
                pieces.append(self.line[self.at : quote])
                self.at = quote + 1
                return "".join(pieces)

    def _is_at_end(self) -> bool:
        return not self.line[self.at :].strip("\r\n")
