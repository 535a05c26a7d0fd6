"""Which texts a fast package may be given: those made of characters on which it was seen to agree with the reference.

Everything else goes to the reference, row by row: texts with an added token in them ("[SEP]" becomes the special
token itself), control characters, nothing but white space, and characters on which the package was seen to differ.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from itertools import compress
from typing import Any

import numpy as np

from packhorse.data import Bools, offsets_of
from packhorse.tokenize.truncate import Raw

Encode = Callable[[list[str]], Raw]

UNKNOWN, GOOD, BAD, SUSPECT = range(4)  # of a code point; SUSPECT: an added token, or a string to avoid, may begin here
NUM_CODES = 0x110000
ORDINARY_CONTROLS = "\t\n\r"
RUN = 8  # characters of a text that tries them next to each other


class UsualTexts:
    """Knows the code points that were tried so far."""

    def __init__(self, tokenizer: Any, avoided: tuple[str, ...], quick: Encode, reference: Encode) -> None:
        """tokenizer: a tokenizers.Tokenizer, for its added tokens; avoided: further strings to look for."""
        self._quick, self._reference = quick, reference
        self._states = np.zeros(NUM_CODES, np.uint8)
        self._states[:128] = GOOD
        self._states[[c for c in range(128) if not chr(c).isprintable() and chr(c) not in ORDINARY_CONTROLS]] = BAD
        added = [token for token in tokenizer.get_added_tokens_decoder().values() if token.content]
        contents = {token.content for token in added} | set(avoided)
        self._is_folded = any(token.normalized for token in added)  # such a token is also found in what becomes it
        if self._is_folded:
            contents |= {folded(content) for content in contents} - {""}
        pattern = "|".join(map(re.escape, sorted(contents, key=len, reverse=True)))
        self._special = re.compile(pattern or r"(?!)", re.IGNORECASE if self._is_folded else 0)
        for first in {case[0] for c in contents for case in (c, c.lower(), c.upper())}:
            is_tried = ord(first) < 128 and self._states[ord(first)] != BAD
            self._states[ord(first)] = SUSPECT if is_tried else BAD

    def are_usual(self, texts: list[str]) -> Bools:
        """[n] whether the fast package may be given the text. Tries characters that were not seen before."""
        is_wide = ~np.fromiter(map(str.isascii, texts), np.bool_, len(texts))
        is_usual = ~np.fromiter(map(str.isspace, texts), np.bool_, len(texts))
        for rows, encoding, unit in ((~is_wide, "ascii", np.uint8), (is_wide, "utf-32-le", np.uint32)):
            where = np.flatnonzero(rows)
            some = texts if len(where) == len(texts) else list(compress(texts, rows.tolist()))
            codes = np.frombuffer("".join(some).encode(encoding, "surrogatepass"), unit)
            is_usual[where] &= self._rows(some, codes)
        return is_usual

    def _rows(self, texts: list[str], codes: np.ndarray) -> Bools:
        """codes: the code points of all texts, one after the other."""
        offsets = offsets_of(np.fromiter(map(len, texts), np.int64, len(texts)))
        states = self._states[codes]
        if codes.dtype == np.uint32 and not states.all():
            self._try(np.unique(codes[states == UNKNOWN]))
            states = self._states[codes]
        places = np.flatnonzero(states != GOOD)
        rows = np.searchsorted(offsets, places, side="right") - 1
        is_usual = np.diff(offsets) > 0
        is_usual[rows[states[places] != SUSPECT]] = False
        for row in np.unique(rows[states[places] == SUSPECT]):
            is_usual[row] &= self._special.search(texts[row]) is None
        if self._is_folded and codes.dtype == np.uint32:
            for row in np.flatnonzero(is_usual):
                is_usual[row] = self._special.search(folded(texts[row])) is None
        return is_usual

    def _try(self, codes: np.ndarray) -> None:
        """Decides code points: alone, among ASCII and combining marks, next to each other."""
        self._states[codes] = BAD
        codes = codes[(codes < 0xD800) | (codes > 0xDFFF)]
        for texts_of in (_alone, _among_others, _in_runs):
            texts, num_codes = texts_of(list(map(chr, codes)))
            agrees = equal_rows(self._quick(texts), self._reference(texts))
            codes = codes[np.repeat(agrees, num_codes)[: len(codes)]]
        self._states[codes] = GOOD


def folded(text: str) -> str:
    """Letters without accents and widths, nothing invisible: at least what a normalizer may make of a text."""
    plain = unicodedata.normalize("NFKD", text.casefold())
    return "".join(c for c in plain if unicodedata.category(c) not in ("Mn", "Cf", "Cc") or c.isspace())


def _alone(chars: list[str]) -> tuple[list[str], int]:
    return chars, 1


def _among_others(chars: list[str]) -> tuple[list[str], int]:
    """Marks below and above a letter change places in normal forms, if both sides know their classes."""
    marked = [f"a{c}\u0323 a\u0323{c} a{c}\u0301 a\u0301{c}" for c in chars]
    return [f"a{c}b {c}A1{c}. {c}{c} x{c} {m}" for c, m in zip(chars, marked, strict=True)], 1


def _in_runs(chars: list[str]) -> tuple[list[str], int]:
    return ["".join(chars[i : i + RUN]) for i in range(0, len(chars), RUN)], RUN


def equal_rows(one: Raw, other: Raw) -> Bools:
    """[n] whether row i of both has the same ids. A result that is no n rows is equal nowhere."""
    is_equal = np.zeros(len(other.lengths), np.bool_)
    if len(one.lengths) != len(other.lengths) or int(one.lengths.sum()) != len(one.ids):
        return is_equal
    is_equal = one.lengths == other.lengths
    mine, theirs = (row.ids[np.repeat(is_equal, row.lengths)] for row in (one, other))
    lengths = one.lengths[is_equal]
    counts = np.concatenate([[0], np.cumsum(mine != theirs)])
    offsets = offsets_of(lengths)
    is_equal[is_equal] = counts[offsets[1:]] == counts[offsets[:-1]]
    return is_equal
