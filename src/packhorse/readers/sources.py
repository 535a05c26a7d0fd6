"""Where the bytes of line formats come from: a plain file, a compressed one, or standard input.

Only a plain file can be sought. The others are read again up to a mark, and a CRC-32 of what was skipped tells whether
it is the same as last time.
"""

from __future__ import annotations

import bisect
import bz2
import hashlib
import io
import select
import sys
from collections.abc import Callable
from pathlib import PurePosixPath
from typing import Any, BinaryIO, Protocol

import pyarrow as pa

from packhorse.errors import InputError, UsageError
from packhorse.files import fingerprint, name_of, open_file, size_of

STANDARD_INPUT = "-"
CODECS = {".gz": "gzip", ".zst": "zstd", ".bz2": "bz2"}
LOOK_BYTES = 16 << 20  # decompressed; how well a file compresses is told by so much of it
MOST = 0.999  # of a file whose end was not seen
READ_BYTES = 64 << 10  # of bz2
HEAD_BYTES = 32 << 20  # of standard input, kept in memory
HEAD_HASH_BYTES = 64 << 10
ASSUMED_BYTES = 64 << 20  # that are still to come from standard input, while nobody knows
LOOK_EVERY_S = 0.2  # at a stop, while standard input is silent

OnWait = Callable[[], None]


def no_look() -> None:
    """Nobody can stop it: a wait lasts as long as the input is silent."""


def without_compression(address: str) -> tuple[str, str | None]:
    """("rows.csv", ".gz") of rows.csv.gz; None where it is not compressed."""
    name = name_of(address)
    suffix = PurePosixPath(name).suffix.lower()
    return (name[: -len(suffix)], suffix) if suffix in CODECS else (name, None)


class Stream(Protocol):
    def read(self, size: int, /) -> bytes: ...  # at least a byte before the end
    def close(self) -> None: ...


class Source(Protocol):
    """One file of lines."""

    address: str
    num_bytes: int  # as stored; what the file weighs in the progress of the input
    is_seekable: bool
    head_bytes: int | None  # what can be read more than once; None: all

    def open(self) -> Stream: ...  # from the first byte on, decompressed
    def share(self, mark: int) -> float: ...  # of the stored bytes before a mark that was reached already, 0 to 1
    def fingerprint(self) -> dict[str, object]: ...


def open_source(address: str, on_wait: OnWait = no_look) -> Source:
    """on_wait: called before each read of standard input and while it is silent; may raise.

    Raises InputError where there is no such file, UsageError where standard input is a terminal.
    """
    if address == STANDARD_INPUT:
        return StandardInput(_standard_input(), on_wait)
    _, suffix = without_compression(address)
    return PlainFile(address) if suffix is None else CompressedFile(address, CODECS[suffix])


def _standard_input() -> BinaryIO:
    if sys.stdin is None or sys.stdin.isatty():
        what = "closed" if sys.stdin is None else "a terminal"
        raise UsageError(f"input -: standard input is {what}; pipe rows into it: cat rows.jsonl | packhorse run ...")
    return sys.stdin.buffer


class PlainFile:
    is_seekable = True
    head_bytes: int | None = None

    def __init__(self, address: str) -> None:
        self.address, self.num_bytes = address, size_of(address)

    def open(self) -> BinaryIO:
        return open_file(self.address)

    def share(self, mark: int) -> float:
        return mark / max(self.num_bytes, 1)

    def fingerprint(self) -> dict[str, object]:
        return fingerprint(self.address)


class CompressedFile:
    """Members that were put together with cat are one stream."""

    is_seekable = False
    head_bytes: int | None = None

    def __init__(self, address: str, codec: str) -> None:
        self.address, self.num_bytes = address, size_of(address)
        self._codec = codec
        self._marks, self._stored = [0], [0.0]  # decompressed bytes, and the compressed ones that they take

    def open(self) -> Stream:
        return _Decompressed(self, self._codec)

    def share(self, mark: int) -> float:
        if mark and len(self._marks) == 1:
            self._look()
        at = min(bisect.bisect_left(self._marks, mark), len(self._marks) - 1)
        if not at:
            return 0.0
        (mark_0, mark_1), (stored_0, stored_1) = self._marks[at - 1 : at + 1], self._stored[at - 1 : at + 1]
        if mark == mark_1:
            return stored_1 / self.num_bytes
        share = (stored_0 + (stored_1 - stored_0) * (mark - mark_0) / (mark_1 - mark_0)) / self.num_bytes
        return share if mark < mark_1 else min(share, MOST)

    def fingerprint(self) -> dict[str, object]:
        return fingerprint(self.address)

    def reached(self, mark: int, stored: int, is_end: bool) -> None:
        """Told by a stream. The decompressor reads ahead, so that small marks would say too much."""
        if mark > self._marks[-1] and (is_end or mark >= LOOK_BYTES):
            self._stored.append(min(stored, MOST * self.num_bytes))  # first: another thread goes by the marks
            self._marks.append(mark)
        if is_end and mark:
            self._stored[-1] = float(self.num_bytes)

    def _look(self) -> None:
        stream = self.open()
        try:
            while stream.read(1 << 20) and len(self._marks) == 1:
                pass
        finally:
            stream.close()


class _Decompressed:
    def __init__(self, file: CompressedFile, codec: str) -> None:
        self._file, self._raw, self._mark = file, open_file(file.address), 0
        self._stream: Any = _decompressor(codec, self._raw) if file.num_bytes else self._raw

    def read(self, size: int, /) -> bytes:
        data: bytes = self._stream.read(size)
        self._mark += len(data)
        self._file.reached(self._mark, self._raw.tell(), is_end=not data)
        return data

    def close(self) -> None:
        self._stream.close()
        self._raw.close()


def _decompressor(codec: str, raw: BinaryIO) -> Any:
    """Arrow's, but for bz2, where it stops at an empty member."""
    return _Bz2Members(raw) if codec == "bz2" else pa.CompressedInputStream(raw, codec)


class _Bz2Members:
    """All members of a bz2 file. bz2.BZ2File takes what follows a member and is none for the end of the file, so that a
    damaged header, of which pbzip2 writes one every 900 kB, would cost all rows behind it without a word."""

    def __init__(self, raw: BinaryIO) -> None:
        self._raw, self._member = raw, bz2.BZ2Decompressor()

    def read(self, size: int, /) -> bytes:
        pieces: list[bytes] = []
        while size and (data := self._some(size)):
            pieces.append(data)
            size -= len(data)
        return b"".join(pieces)

    def _some(self, size: int) -> bytes:
        """At least a byte before the end. Raises EOFError and OSError."""
        data = b""
        while not data:
            if self._member.eof:
                stored = self._member.unused_data or self._raw.read(READ_BYTES)
                if not stored:
                    return b""
                self._member = bz2.BZ2Decompressor()
            else:
                stored = self._raw.read(READ_BYTES) if self._member.needs_input else b""
                if not stored and self._member.needs_input:
                    raise EOFError("it ends within a member")
            data = self._member.decompress(stored, size)
        return data

    def close(self) -> None: ...


class StandardInput:
    """A stream that goes by once. Its head is kept, so that a sample, a preview and the job can begin at the same row;
    only one of them goes beyond the head.

    A producer that dies looks like the end of the input: in a shell, `set -o pipefail` tells.
    """

    address = STANDARD_INPUT
    num_bytes = 1
    is_seekable = False
    head_bytes: int | None = HEAD_BYTES

    def __init__(self, stream: BinaryIO, on_wait: OnWait = no_look) -> None:
        self._stream, self._head, self._on_wait = stream, bytearray(), on_wait
        self._taken = HEAD_BYTES  # bytes that were read of the stream, once the head is full
        self._num_bytes: int | None = None  # known at the end

    def open(self) -> Stream:
        return _Pass(self)

    def share(self, mark: int) -> float:
        if self._num_bytes is not None:
            return mark / max(self._num_bytes, 1)
        return mark / (mark + ASSUMED_BYTES)

    def fingerprint(self) -> dict[str, object]:
        self._fill(HEAD_HASH_BYTES)
        return {"path": self.address, "head_sha256": hashlib.sha256(self._head[:HEAD_HASH_BYTES]).hexdigest()}

    def read_at(self, place: int, size: int) -> bytes:
        """Raises InputError beyond the head, for whoever is not the first there."""
        if place < HEAD_BYTES:
            self._fill(min(place + size, HEAD_BYTES))
            return bytes(memoryview(self._head)[place : place + size])
        if place != self._taken:
            raise InputError(
                f"standard input: {self._taken:,} bytes of it went by while its first rows were looked at, more than "
                f"the {HEAD_BYTES >> 20} MiB that are kept; save it to a file and give that"
            )
        data = self._next(size)
        self._taken += len(data)
        return data

    def _fill(self, size: int) -> None:
        while len(self._head) < size and (data := self._next(size - len(self._head))):
            self._head += data

    def _next(self, size: int) -> bytes:
        data = b"" if self._num_bytes is not None else self._read(size)
        if not data and self._num_bytes is None:
            self._num_bytes = len(self._head) if len(self._head) < HEAD_BYTES else self._taken
        return data

    def _read(self, size: int) -> bytes:
        """So many bytes, fewer at the end of the stream.

        Only what has come is asked for: a read that waits can not be given up, and holds the lock of sys.stdin's
        buffer, which the interpreter needs in order to end.
        """
        if not isinstance(self._stream, io.BufferedReader):
            return self._stream.read(size)
        pieces: list[bytes] = []
        while size:
            self._wait()
            data = self._stream.read1(size)
            if not data:
                break
            pieces.append(data)
            size -= len(data)
        return b"".join(pieces)

    def _wait(self) -> None:
        """Until there is a byte, or the end."""
        while True:
            self._on_wait()
            if select.select([self._stream], [], [], LOOK_EVERY_S)[0]:
                return


class _Pass:
    def __init__(self, source: StandardInput) -> None:
        self._source, self._place = source, 0

    def read(self, size: int, /) -> bytes:
        data = self._source.read_at(self._place, size)
        self._place += len(data)
        return data

    def close(self) -> None: ...
