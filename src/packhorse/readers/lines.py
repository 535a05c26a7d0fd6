"""What the line formats share: whole lines with the byte offset of each, from any mark on.

A mark is an offset in the decompressed bytes. Lines end with \\n; a byte order mark at the start of a file is no part
of its first line.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from contextlib import closing
from itertools import accumulate
from typing import Any, NamedTuple
from zlib import crc32

import numpy as np
import pyarrow as pa

from packhorse.data import Int64s, Position, UInt32s
from packhorse.errors import ChangedError, InputError
from packhorse.readers.sample import even_rows
from packhorse.readers.sources import OnWait, Source, Stream, no_look, open_source

SAMPLE_BYTES = 16 << 20  # what a schema is decided on
BLOCK_BYTES = 4 << 20
FIRST_BLOCK_BYTES = 128 << 10  # and four times as much each time: who reads a few rows here and there parses no more
SKIPPED_BYTES = 1 << 20
BYTE_ORDER_MARK = b"\xef\xbb\xbf"


class Block(NamedTuple):
    """Lines that follow each other in a file, their ends included."""

    lines: list[bytes]
    marks: Int64s  # [n + 1]
    checks: UInt32s | None  # [n + 1], CRC-32 of all before a mark; None where the file can be sought

    @property
    def num_bytes(self) -> int:
        return int(self.marks[-1] - self.marks[0])

    def checks_at(self, lines: Any) -> UInt32s | None:
        return None if self.checks is None else self.checks[lines]

    def after(self, line: int) -> Block:
        """Without the lines before that one."""
        return Block(self.lines[line:], self.marks[line:], self.checks_at(slice(line, None)))

    def within(self, num_bytes: int) -> Block:
        """Only the lines that begin in its first bytes."""
        count = int(np.searchsorted(self.marks[:-1], self.marks[0] + num_bytes))
        return Block(self.lines[:count], self.marks[: count + 1], self.checks_at(slice(count + 1)))

    def joined(self, following: Block) -> Block:
        checks = None
        if self.checks is not None and following.checks is not None:
            checks = np.concatenate([self.checks, following.checks[1:]])
        return Block(self.lines + following.lines, np.concatenate([self.marks, following.marks[1:]]), checks)


class LineReader:
    """What all readers of lines have in common; how lines become rows is theirs."""

    raw_column: str | None = None
    rescues = True
    rows_are_lines = True  # so that a row begins wherever a line does

    def __init__(self, files: Sequence[str], on_wait: OnWait = no_look) -> None:
        self.files = files
        self._sources = [open_source(f, on_wait) for f in files]
        self._sizes = [s.num_bytes for s in self._sources]

    @property
    def head_bytes(self) -> int | None:
        """How much of the input can be read more than once; None: all of it."""
        return self._sources[0].head_bytes

    def num_rows(self) -> int | None:
        return None

    def progress(self, position: Position) -> float:
        """Share of the stored bytes before a position, 0 to 1; for standard input a guess, until its end was seen."""
        before, size = sum(self._sizes[: position.file]), self._sizes[position.file]
        return (before + self._sources[position.file].share(position.mark) * size) / max(sum(self._sizes), 1)

    def fingerprint(self) -> list[dict[str, object]]:
        return [source.fingerprint() for source in self._sources]

    def spread(self, places: int) -> list[Position]:
        """Where the line begins that follows each of the evenly spaced bytes; a file that cannot be sought, or whose
        rows can be told only from its start on, is read from its start."""
        positions = even_rows(self._sizes, places)
        return list(dict.fromkeys(Position(p.file, self._row_start(self._sources[p.file], p.mark)) for p in positions))

    def _row_start(self, source: Source, byte: int) -> int:
        return line_start(source, byte) if source.is_seekable and self.rows_are_lines else 0

    def _blocks(self, start: Position) -> Iterator[tuple[int, Block]]:
        """Each with its file's number. Raises InputError, and ChangedError where what lies before the start differs."""
        for file in range(start.file, len(self.files)):
            at = start if file == start.file else Position(file, 0)
            for block in blocks(self._sources[file], at.mark, at.check):
                yield file, block


def blocks(source: Source, mark: int = 0, check: int = 0) -> Iterator[Block]:
    """All lines from a mark on, in blocks of about BLOCK_BYTES. Raises InputError naming the file, and ChangedError
    where the bytes before the mark have another CRC-32 than `check`, of a file that cannot be sought."""
    try:
        with closing(source.open()) as stream:
            first = _first_bytes(stream) if not mark else _skip(source, stream, mark, check)
            if not mark and first == BYTE_ORDER_MARK:
                mark, check, first = len(first), crc32(first), b""
            for data in _whole_lines(stream, first):
                block = _block(io.BytesIO(data).readlines(), mark, None if source.is_seekable else check)
                mark, check = int(block.marks[-1]), 0 if block.checks is None else int(block.checks[-1])
                yield block
    except (OSError, EOFError, pa.ArrowException) as error:
        raise InputError(f"{source.address}: cannot be read: {error}") from error


def _first_bytes(stream: Stream) -> bytes:
    found = b""
    while len(found) < len(BYTE_ORDER_MARK) and (data := stream.read(len(BYTE_ORDER_MARK) - len(found))):
        found += data
    return found


def _skip(source: Source, stream: Any, mark: int, check: int) -> bytes:
    if source.is_seekable:
        stream.seek(mark)
        return b""
    seen, left = 0, mark
    while left and (data := stream.read(min(left, SKIPPED_BYTES))):
        seen, left = crc32(data, seen), left - len(data)
    if left or seen != check:
        what = f"it ends {left:,} bytes earlier" if left else f"their CRC-32 is {seen:08x}, it was {check:08x}"
        raise ChangedError(
            f"{source.address}: its first {mark:,} bytes are not those that this output was begun with: {what}. "
            "Give the same input again, or --overwrite to start anew"
        )
    return b""


def _whole_lines(stream: Stream, first: bytes) -> Iterator[bytes]:
    """A last line without an end comes with those before it."""
    size, whole, pieces = FIRST_BLOCK_BYTES, b"", [first]
    while data := stream.read(size):
        if whole:
            yield whole
        end, size, whole = data.rfind(b"\n") + 1, min(4 * size, BLOCK_BYTES), b""
        if end:
            whole, pieces = b"".join([*pieces, data[:end]]), []
        pieces.append(data[end:])
    if rest := whole + b"".join(pieces):
        yield rest


def _block(lines: list[bytes], mark: int, check: int | None) -> Block:
    marks = mark + np.cumsum([0, *map(len, lines)], dtype=np.int64)
    if check is None:
        return Block(lines, marks, None)
    checks = accumulate(lines, lambda seen, line: crc32(line, seen), initial=check)
    return Block(lines, marks, np.fromiter(checks, np.uint32, len(lines) + 1))


def line_start(source: Source, byte: int) -> int:
    """Of the first line that begins at a byte or after it; the file's end where there is none."""
    if not byte:
        return 0
    try:
        with closing(source.open()) as stream:
            file: Any = stream
            file.seek(byte - 1)
            file.readline()
            return int(file.tell())
    except OSError as error:
        raise InputError(f"{source.address}: cannot be read: {error}") from error


def decode_error(data: bytes, what: str) -> str | None:
    """Which byte of it is not UTF-8; None where all are."""
    try:
        data.decode()
    except UnicodeDecodeError as error:
        return f"byte {error.object[error.start]:#04x} at {error.start} of the {what} is not UTF-8"
    return None
