"""A corpus, or queries, as a Reader of two columns: an id as text, and the text, a title before it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from packhorse.data import Chunk, Position
from packhorse.errors import InputError, UsageError
from packhorse.readers.columns import guess_text_column, is_text
from packhorse.stages import Reader

ID, TEXT = "id", "text"
USUAL_IDS = ("_id", "id")
USUAL_TEXTS = ("text", "query", "question", "passage", "document")


class Documents:
    """The documents of another Reader, as BEIR and sentence-transformers read them: title, space, text."""

    raw_column: str | None = None
    rescues = False

    def __init__(self, reader: Reader, flag: str, text_column: str | None) -> None:
        """flag: what the rows were given as, for messages. Raises UsageError where a column is missing."""
        self._reader, self._flag = reader, flag
        self.files: Sequence[str] = reader.files
        schema = reader.schema()
        found = next((name for name in USUAL_IDS if name in schema.names), None)
        if found is None:
            raise UsageError(f"{flag}: no column {' or '.join(USUAL_IDS)}; there are {', '.join(schema.names)}")
        self._id = found
        texts = pa.schema([field for field in schema if field.name != self._id])
        usual = next((name for name in USUAL_TEXTS if name in texts.names), None)
        self._text = guess_text_column(texts, text_column or usual, None)
        has_title = "title" in texts.names and self._text != "title" and is_text(texts.field("title").type)
        self._title = "title" if has_title else None

    def schema(self) -> pa.Schema:
        return pa.schema([(ID, pa.large_string()), (TEXT, pa.large_string())])

    def num_rows(self) -> int | None:
        return self._reader.num_rows()

    def progress(self, position: Position) -> float:
        return self._reader.progress(position)

    def fingerprint(self) -> list[dict[str, object]]:
        return self._reader.fingerprint()

    def spread(self, places: int) -> list[Position]:
        return self._reader.spread(places)

    def read(self, start: Position, columns: Sequence[str], text_columns: Sequence[str]) -> Iterator[Chunk]:
        """Both columns, whatever is asked for. Raises InputError for a document without an id."""
        texts = [self._text] if self._title is None else [self._text, self._title]
        for chunk in self._reader.read(start, [self._id], texts):
            yield chunk_of(chunk, pa.table([self._ids(chunk), self._texts(chunk)], schema=self.schema()))

    def _ids(self, chunk: Chunk) -> Any:
        ids = chunk.table[self._id]
        if ids.null_count:
            raise InputError(f"{self._flag}: a row has no {self._id}")
        return ids.cast(pa.large_string())

    def _texts(self, chunk: Chunk) -> Any:
        """Null where there is neither."""
        text = chunk.table[self._text]
        if self._title is None:
            return text
        title = chunk.table[self._title]
        both = pc.binary_join_element_wise(title.fill_null(""), text.fill_null(""), pa.scalar(" ", pa.large_string()))
        is_none = pc.and_(title.is_null(), text.is_null())
        return pc.if_else(is_none, pa.scalar(None, pa.large_string()), pc.utf8_trim_whitespace(both))


def chunk_of(chunk: Chunk, table: pa.Table) -> Chunk:
    """The chunk with another table of as many rows."""
    return Chunk(table, chunk.file, chunk.marks, chunk.row_bytes, chunk.errors, chunk.checks)
