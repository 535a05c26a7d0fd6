"""Plain text: a line is a row, an empty one too, so that there are as many rows as `wc -l` counts and one more for a
last line without an end. The one column is `text`, without the line's end (\\n or \\r\\n).

Bytes that are not UTF-8 make an error row, whose text has U+FFFD in their place.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa

from packhorse.data import Chunk, Position, RowError
from packhorse.readers.lines import Block, LineReader, decode_error
from packhorse.readers.sources import OnWait, no_look
from packhorse.stages import Reader

EXTENSIONS = (".txt",)
READS_LINES = True
IS_OFTEN_A_NOTE = True  # README.txt beside the data
COLUMN = "text"


def open_files(files: Sequence[str], on_wait: OnWait = no_look) -> Reader:
    return TextReader(files, on_wait)


class TextReader(LineReader):
    """Lines of text files, in the order given. A mark is a byte offset in its file."""

    def schema(self) -> pa.Schema:
        return pa.schema([(COLUMN, pa.large_string())])

    def read(self, start: Position, columns: Sequence[str], text_columns: Sequence[str]) -> Iterator[Chunk]:
        """Chunks from a position on. Raises InputError naming the file that cannot be read, and ChangedError."""
        wanted = list(dict.fromkeys([*columns, *text_columns]))
        for file, block in self._blocks(start):
            yield _chunk(block, file, wanted)


def _chunk(block: Block, file: int, wanted: list[str]) -> Chunk:
    texts, errors = _decoded([without_end(line) for line in block.lines])
    table = pa.table({name: pa.array(texts, pa.large_string()) for name in wanted})
    return Chunk(table, file, block.marks, np.diff(block.marks), errors, block.checks)


def without_end(line: bytes) -> bytes:
    """The line without \\n or \\r\\n."""
    return line[:-2] if line.endswith(b"\r\n") else line.removesuffix(b"\n")


def _decoded(lines: list[bytes]) -> tuple[list[str], dict[int, RowError]]:
    try:
        return list(map(bytes.decode, lines)), {}
    except UnicodeDecodeError:
        found = {i: decode_error(line, "line") for i, line in enumerate(lines)}
        errors = {i: RowError("invalid_utf8", message) for i, message in found.items() if message}
        return [line.decode("utf-8", "replace") for line in lines], errors
