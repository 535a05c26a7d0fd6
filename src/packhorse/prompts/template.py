"""--template "Summarize {title}: {body}": a prompt made of columns."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import repeat
from pathlib import Path

import pyarrow as pa

from packhorse.data import RowError
from packhorse.errors import UsageError, did_you_mean
from packhorse.prompts.columns import RowErrors, texts_of

PIECES = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|[{}]|[^{}]+")
# What Python's format strings would do with these in a field is not done: no attributes, items, conversions, formats.
FORMATTING = re.compile(r"[.\[!:]")
OF_BYTES = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_fixed_size_binary, pa.types.is_binary_view)


def read_template(value: str) -> str:
    """The template itself: of @FILE what stands in that file, less the line break at its end. Raises UsageError."""
    if not value.startswith("@"):
        return value
    try:
        text = Path(value[1:]).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"--template {value}: the file cannot be read as text: {error}") from error
    return text.removesuffix("\n")


class Template:
    """Fields {column} between texts; {{ and }} are braces. What stands in a field is a column's name and no more, so
    that nothing in a template can reach beyond the row.

    Raises UsageError where a brace has no partner, and where there is no field: every row's prompt would be the same.
    """

    def __init__(self, text: str) -> None:
        self._text = text
        self._literals, self._fields = [""], []  # literals[0] field[0] literals[1] field[1] ... literals[-1]
        self._places: list[int] = []  # of the fields in the text
        for place, piece, field in self._pieces():
            if field is None:
                self._literals[-1] += piece
            else:
                self._fields.append(field)
                self._places.append(place)
                self._literals.append("")
        if not self._fields:
            raise UsageError(f"{self._shown}: names no column, so that all prompts would be equal; write {{column}}")

    @property
    def columns(self) -> list[str]:
        """Those that it names, each once."""
        return list(dict.fromkeys(self._fields))

    def check(self, schema: pa.Schema) -> None:
        """Raises UsageError where a field is no column of the input, or one of bytes."""
        for place, field in zip(self._places, self._fields, strict=True):
            where = f"{self._shown}: {{{field}}} at character {place + 1}"
            if field not in schema.names:
                raise UsageError(f"{where}: {self._unknown(field, schema.names)}")
            kind = schema.field(field).type
            if any(check(kind) for check in OF_BYTES):
                raise UsageError(f"{where}: the column holds bytes ({kind}), not text")

    def render(self, table: pa.Table, errors: RowErrors) -> tuple[list[str | None], dict[int, RowError]]:
        """[n] prompts. None for a row in `errors`, and for one with a null in a column, which is an error."""
        texts: dict[str, list[str | None]] = {}
        failed: dict[int, RowError] = {}
        for name in self.columns:
            texts[name], found = texts_of(name, table[name], errors)
            nulls = [i for i, text in enumerate(texts[name]) if text is None and i not in errors and i not in found]
            failed = found | {i: RowError("null_text", f"column {name!r} is null") for i in nulls} | failed
        pieces: list[Iterator[str | None] | list[str | None]] = [repeat(self._literals[0], table.num_rows)]
        for field, literal in zip(self._fields, self._literals[1:], strict=True):
            pieces += [texts[field], repeat(literal)]
        return [None if None in row else "".join(row) for row in zip(*pieces, strict=False)], failed  # type: ignore[arg-type]

    def _pieces(self) -> Iterator[tuple[int, str, str | None]]:
        """Place in the text, and a literal text or the name in a field."""
        for match in PIECES.finditer(self._text):
            piece = match.group()
            if piece in ("{", "}"):
                where = f"{self._shown}: the {piece} at character {match.start() + 1}"
                raise UsageError(f"{where} has no partner; write {{column}}, and {piece * 2} for the character itself")
            if match.group(1) is not None and not match.group(1).strip():
                raise UsageError(f"{self._shown}: the {{}} at character {match.start() + 1} names no column")
            yield match.start(), piece[:1] if piece in ("{{", "}}") else piece, match.group(1)

    def _unknown(self, field: str, names: list[str]) -> str:
        plain = FORMATTING.split(field)[0]
        if plain != field and plain in names:
            return f"a field is a column's name alone, without format, conversion or attribute; write {{{plain}}}"
        return f"no such column{did_you_mean(field, names)}; the input has {', '.join(names)}"

    @property
    def _shown(self) -> str:
        return f"--template {self._text if len(self._text) <= 80 else self._text[:77] + '...'!r}"
