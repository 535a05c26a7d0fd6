"""A fast package under watch: rows outside what it was proven on go to the reference, and of every shard some others
are encoded by both. Once they differ, the reference takes its place for good."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, TypeVar

import numpy as np

from packhorse.data import Bools, Int64s, offsets_of
from packhorse.tokenize.encoder import Difference, HfEncoder
from packhorse.tokenize.truncate import Raw
from packhorse.tokenize.usual import UsualTexts, equal_rows

CHECK_ROWS = 16  # of each column of a shard, and as many again of those that are not all ASCII
MIN_ROWS = 4 * CHECK_ROWS  # with fewer the check costs more than the package saves

T = TypeVar("T")


class QuickTokenizer(Protocol):
    """A fast package's tokenizer. `encode` may raise anything."""

    name: str
    avoided: tuple[str, ...]  # texts with one of these in them are known to come out wrong

    def encode(self, texts: list[str]) -> Raw: ...


class CheckedEncoder:
    """An Encoder whose tokens are those of `reference`, which it closes."""

    def __init__(self, quick: QuickTokenizer, reference: HfEncoder, backend: Any) -> None:
        """backend: the tokenizers.Tokenizer that the reference was made of."""
        self._quick, self._reference = quick, reference
        self._usual = UsualTexts(backend, quick.avoided, quick.encode, reference.encode_column)
        self.difference: Difference | None = None

    def close(self) -> None:
        self._reference.close()

    def encode(self, columns: list[list[str]]) -> list[Raw]:
        """Raw tokens of each column. Sets `difference` where the package failed: then all columns are the reference's,
        now and from now on."""
        if self.difference is None and len(columns[0]) >= MIN_ROWS:
            raws = []
            for texts in columns:
                made = self._attempt(lambda texts=texts: self._column(texts))  # type: ignore[misc]
                if isinstance(made, Difference):
                    self.difference = made
                    break
                raws.append(made)
            else:
                return raws
        return self._reference.encode(columns)

    def prove(self, texts: list[str]) -> Difference | None:
        """The first of the texts for which the package gives other tokens, among those that it would be given."""
        return self._attempt(lambda: self._compare(texts, np.flatnonzero(self._usual.are_usual(texts)), None))

    def usual(self, texts: list[str]) -> list[str]:
        """Those of the texts that the package would be given; none if it cannot be asked."""
        is_usual = self._attempt(lambda: self._usual.are_usual(texts))
        return [] if isinstance(is_usual, Difference) else [texts[i] for i in np.flatnonzero(is_usual)]

    def _column(self, texts: list[str]) -> Raw | Difference:
        is_usual = self._usual.are_usual(texts)
        unusual, given = np.flatnonzero(~is_usual), texts.copy()
        for row in unusual.tolist():
            given[row] = ""
        raw = self._quick.encode(given)
        difference = self._compare(texts, _rows_to_check(texts, is_usual), raw)
        if difference is not None:
            return difference
        return _spliced(raw, unusual, self._reference.encode_column([texts[i] for i in unusual]))

    def _compare(self, texts: list[str], rows: Int64s, made: Raw | None) -> Difference | None:
        """made: what the package gave for all texts; None: asked here, for the rows alone."""
        some = [texts[i] for i in rows]
        expected = self._reference.encode_column(some)
        if made is None:
            mine = self._quick.encode(some)
        elif _is_whole(made, len(texts)):
            mine = _taken(made, rows)
        else:
            return Difference(self._quick.name, 0, texts[0], "gave no row for each text, from")
        wrong = np.flatnonzero(~equal_rows(mine, expected))
        if not len(wrong):
            return None
        row = int(rows[wrong[0]])
        return Difference(self._quick.name, row, texts[row], "differs from hf on")

    def _attempt(self, work: Callable[[], T]) -> T | Difference:
        """What the package raises is a difference: it does not do what the reference does."""
        try:
            return work()
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # noqa: BLE001 - a panic of Rust code is no Exception
            return Difference(self._quick.name, 0, "", f"raised {type(error).__name__}: {error}"[:200])


def _is_whole(raw: Raw, num_rows: int) -> bool:
    return len(raw.lengths) == num_rows and int(raw.lengths.sum()) == len(raw.ids)


def _rows_to_check(texts: list[str], is_usual: Bools) -> Int64s:
    """Ascending rows, spread over the shard: a function of the shard alone."""
    is_wide = ~np.fromiter(map(str.isascii, texts), np.bool_, len(texts))
    return np.union1d(_spread(np.flatnonzero(is_usual)), _spread(np.flatnonzero(is_usual & is_wide)))


def _spread(rows: Int64s) -> Int64s:
    if len(rows) <= CHECK_ROWS:
        return rows
    return rows[np.linspace(0, len(rows) - 1, CHECK_ROWS).astype(np.int64)]


def _taken(raw: Raw, rows: Int64s) -> Raw:
    offsets = offsets_of(raw.lengths)
    ids = [raw.ids[offsets[i] : offsets[i + 1]] for i in rows]
    return Raw(np.concatenate(ids) if ids else raw.ids[:0], raw.lengths[rows])


def _spliced(raw: Raw, rows: Int64s, others: Raw) -> Raw:
    """raw with row rows[i] replaced by row i of others; rows ascend."""
    if not len(rows):
        return raw
    offsets, other_offsets = offsets_of(raw.lengths), offsets_of(others.lengths)
    pieces, at = [], 0
    for i, row in enumerate(rows.tolist()):
        pieces += [raw.ids[at : offsets[row]], others.ids[other_offsets[i] : other_offsets[i + 1]]]
        at = int(offsets[row + 1])
    lengths = raw.lengths.copy()
    lengths[rows] = others.lengths
    return Raw(np.concatenate([*pieces, raw.ids[at:]]), lengths)
