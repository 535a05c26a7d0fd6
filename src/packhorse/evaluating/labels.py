"""What stands in a label column, as numbers. Whatever cannot be a label is an error that names row, value and what is
legal. A row without a label (null, NaN, or an empty text, as CSV has it) is not measured."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from packhorse.data import Float64s, Int64s, is_json_text
from packhorse.errors import InputError
from packhorse.readers.cut import ShardRows

SHOWN_LABELS = 12
NONE, FAILED = -1, -2  # in place of a label: of a row without one, of a row without a prediction


class Labels:
    """Names and numbers of a model's labels. Where names are numbers themselves ("1" to "5" for stars), a number in the
    column is a name; else it is the place of a label, from 0 on."""

    def __init__(self, names: Sequence[str], column: str) -> None:
        self._names, self._column = tuple(names), column
        self._numbers: Mapping[str, int] = {name: i for i, name in enumerate(names)}
        folded = {name.casefold(): i for i, name in enumerate(names)}
        self._folded = folded if len(folded) == len(self._numbers) else {}
        self._by_number = {w: i for i, name in enumerate(names) if (w := whole(name)) is not None}

    def codes(self, rows: ShardRows) -> Int64s:
        """[n] the number of each row's label, NONE for a row without one. Raises InputError."""
        known: dict[str, int] = {}
        codes = np.empty(rows.table.num_rows, np.int64)
        for i, value in enumerate(label_values(rows, self._column)):
            key = repr(value)
            if key not in known:
                known[key] = NONE if is_missing(value) and "" not in self._numbers else self._code(value, rows, i)
            codes[i] = known[key]
        return codes

    def sets(self, rows: ShardRows) -> Int64s:
        """[n, labels] 1 where a row has the label, else 0; NONE throughout for a row without a list. A list has names
        or numbers of labels, each once; or for every label true or false, or 1.0 or 0.0. A text has names between
        commas. Raises InputError."""
        made = np.zeros((rows.table.num_rows, len(self._names)), np.int64)
        for i, value in enumerate(label_values(rows, self._column)):
            if is_missing(value):
                made[i] = NONE
                continue
            given = value if isinstance(value, list) else [part for part in str(value).split(",") if part.strip()]
            if given and all(isinstance(one, float | bool) for one in given):
                made[i] = self._flags(given, rows, i)
                continue
            chosen = [self._code(one.strip() if isinstance(one, str) else one, rows, i) for one in given]
            if len(set(chosen)) < len(chosen):
                raise self._error(rows, i, value, f"each label once, or {self._every_label()}")
            made[i, chosen] = 1
        return made

    def tags(self, rows: ShardRows) -> list[list[int] | None]:
        """Of each row the numbers of its words' tags; None for null. Raises InputError."""
        known: dict[str, int] = {}
        found: list[list[int] | None] = []
        for i, tags in enumerate(label_values(rows, self._column)):
            if tags is None:
                found.append(None)
                continue
            if not isinstance(tags, list):
                raise self._error(rows, i, tags, "a list with a tag for each word")
            keys = [repr(tag) for tag in tags]
            for key, tag in zip(keys, tags, strict=True):
                if key not in known:
                    known[key] = self._code(tag, rows, i)
            found.append([known[key] for key in keys])
        return found

    def _flags(self, given: list[Any], rows: ShardRows, i: int) -> list[int]:
        if len(given) != len(self._names) or any(one not in (0, 1) for one in given):
            raise self._error(rows, i, given, self._every_label())
        return [int(one) for one in given]

    def _every_label(self) -> str:
        return f"a list of {len(self._names)} times true or false (or 1.0 or 0.0), one for each label"

    def _code(self, value: Any, rows: ShardRows, i: int) -> int:
        """Raises InputError."""
        if isinstance(value, str | bool):
            found = self._numbers.get(str(value), self._folded.get(str(value).casefold()))
            if found is not None:
                return found
        number = whole(value)
        if number is not None and self._by_number:
            number = self._by_number.get(number)
        if number is not None and 0 <= number < len(self._names):
            return number
        names = ", ".join(self._names[:SHOWN_LABELS]) + (", ..." if len(self._names) > SHOWN_LABELS else "")
        numbers = "" if self._by_number else f", or their numbers 0 to {len(self._names) - 1}"
        raise self._error(rows, i, value, names + numbers)

    def _error(self, rows: ShardRows, i: int, value: Any, legal: str) -> InputError:
        return InputError(f"row {int(rows.numbers[i]):,}: column {self._column!r} holds {value!r}; legal is {legal}")


def numbers(rows: ShardRows, column: str) -> Float64s:
    """[n], NaN for a row without one. Raises InputError."""
    found = rows.table[column]
    if pa.types.is_floating(found.type) or pa.types.is_integer(found.type) or pa.types.is_boolean(found.type):
        kind = pa.uint8() if pa.types.is_boolean(found.type) else found.type
        values: Float64s = found.cast(kind).cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False)
    else:
        values = np.array([_number(v, rows, column, i) for i, v in enumerate(label_values(rows, column))], np.float64)
    infinite = np.flatnonzero(np.isinf(values))
    if len(infinite):
        raise _no_number(values[infinite[0]], rows, column, int(infinite[0]))
    return values


def label_values(rows: ShardRows, column: str) -> list[Any]:
    """[n] Python values; those that came as JSON are read."""
    values: list[Any] = rows.table[column].to_pylist()
    if is_json_text(rows.table.schema.field(column)):
        return [None if value is None else json.loads(value) for value in values]
    return values


def is_missing(value: Any) -> bool:
    """Whether a value says that there is no label: null, NaN, an empty text."""
    if isinstance(value, str):
        return not value.strip()
    return value is None or (isinstance(value, float) and math.isnan(value))


def whole(value: Any) -> int | None:
    """7, 7.0, "7", True; None where it is no whole number."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return int(number) if number.is_integer() else None


def _number(value: Any, rows: ShardRows, column: str, i: int) -> float:
    if is_missing(value):
        return float("nan")
    try:
        return float(value)
    except (TypeError, ValueError):
        raise _no_number(value, rows, column, i) from None


def _no_number(value: Any, rows: ShardRows, column: str, i: int) -> InputError:
    return InputError(f"row {int(rows.numbers[i]):,}: column {column!r} holds {value!r}; legal is a finite number")
