"""Texts to raw tokens. `HfEncoder` is the reference: the Rust tokenizers of Hugging Face, over threads."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import chain
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np

from packhorse.data import UNKNOWN_FROM, Int32s
from packhorse.tokenize.truncate import Raw

CHUNK_ROWS = 500  # small pieces stay in the caches: 78,000 rows/s on 2 cores, 71,000 with 2,000
CHUNK_CHARS = 1_000_000

T = TypeVar("T")
R = TypeVar("R")


class Difference(NamedTuple):
    """A text for which a package does not give the tokens of the reference."""

    package: str
    row: int
    text: str
    reason: str

    def __str__(self) -> str:
        return f"{self.package} {self.reason} {shown(self.text)}"


class Encoder(Protocol):
    """Rows of ids without special tokens, a column of texts after the other."""

    difference: Difference | None  # why the reference took the place of a faster package, as soon as it did

    def encode(self, columns: list[list[str]]) -> list[Raw]: ...
    def close(self) -> None: ...


class HfEncoder:
    """The tokenizers library over our threads.

    Each thread works on its own copy of the tokenizer (a shared one raises "Already borrowed"), and the library's
    own thread pool is switched off for this process by TOKENIZERS_PARALLELISM=false unless the variable is set:
    our threads overlap the Rust part of one piece with the Python part of another, 1.25x the rate on 2 cores.
    """

    difference: Difference | None = None

    def __init__(self, backend: Any, threads: int) -> None:
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        backend.no_padding()
        backend.no_truncation()
        text = backend.to_str()
        self._copies = [type(backend).from_str(text) for _ in range(threads)]
        self._unknown_from = backend.token_to_id(UNKNOWN_FROM)
        self._unknown = 0 if self._unknown_from is None else int(json.loads(text)["model"]["unk_id"])
        self._pool = ThreadPoolExecutor(threads, "tokenize")

    def close(self) -> None:
        self._pool.shutdown()

    def encode(self, columns: list[list[str]]) -> list[Raw]:
        return [self.encode_column(texts) for texts in columns]

    def encode_column(self, texts: list[str]) -> Raw:
        """Raw tokens of all texts, in order."""
        return self._known(joined(self._pieces(texts, _piece_rows(texts), _encode_piece)))

    def encode_aligned(self, texts: list[Any], is_split: bool) -> tuple[Raw, Spans]:
        """Raw tokens of all texts, and where they stand there. is_split: a text is a list of words, and a token's
        characters are counted in its word."""
        rows = CHUNK_ROWS if is_split else _piece_rows(texts)
        pieces = self._pieces(texts, rows, partial(_encode_aligned, is_split=is_split))
        raw = self._known(joined([raw for raw, _ in pieces]))
        return raw, Spans(*(np.concatenate(x) for x in zip(*(s for _, s in pieces), strict=True)))

    def _known(self, raw: Raw) -> Raw:
        """The unknown token in the place of those that only the tokenizer knows."""
        if self._unknown_from is None:
            return raw
        return raw._replace(ids=np.where(raw.ids < self._unknown_from, raw.ids, np.int32(self._unknown)))

    def _pieces(self, texts: list[T], rows: int, encode: Callable[[Any, list[T]], R]) -> list[R]:
        """Of so many texts each, by all threads; never none."""
        free = list(self._copies)  # as many as threads: pop never fails, and is atomic

        def encoded(start: int) -> R:
            tokenizer = free.pop()
            try:
                return encode(tokenizer, texts[start : start + rows])
            finally:
                free.append(tokenizer)

        return list(self._pool.map(encoded, range(0, max(len(texts), 1), rows)))


class Spans(NamedTuple):
    """Of each raw token [T] its first character and the one behind its last, and the number of its word."""

    start: Int32s
    end: Int32s
    word: Int32s


def joined(pieces: list[Raw]) -> Raw:
    """The rows of all pieces, one after the other."""
    if not pieces:
        return Raw(np.empty(0, np.int32), np.empty(0, np.int64))
    return Raw(np.concatenate([p.ids for p in pieces]), np.concatenate([p.lengths for p in pieces]))


def shown(text: str) -> str:
    """The text's repr, at most some 40 characters of it, in ASCII: it may hold anything."""
    return ascii(text if len(text) <= 40 else text[:37] + "...")


def _encode_piece(tokenizer: Any, texts: list[str]) -> Raw:
    ids = [e.ids for e in tokenizer.encode_batch_fast(texts, add_special_tokens=False)]
    lengths = np.fromiter(map(len, ids), np.int64, len(ids))
    return Raw(np.fromiter(chain.from_iterable(ids), np.int32, int(lengths.sum())), lengths)


def _encode_aligned(tokenizer: Any, texts: list[Any], is_split: bool) -> tuple[Raw, Spans]:
    made = tokenizer.encode_batch(texts, is_pretokenized=is_split, add_special_tokens=False)
    lengths = np.fromiter((len(e) for e in made), np.int64, len(made))
    total = int(lengths.sum())
    ids = np.fromiter(chain.from_iterable(e.ids for e in made), np.int32, total)
    ends = np.fromiter(chain.from_iterable(chain.from_iterable(e.offsets for e in made)), np.int32, 2 * total)
    words = (-1 if word is None else word for e in made for word in e.word_ids)
    return Raw(ids, lengths), Spans(ends[::2].copy(), ends[1::2].copy(), np.fromiter(words, np.int32, total))


def _piece_rows(texts: list[str]) -> int:
    """Rows a piece: enough to pay for the hand-over, few enough that threads end together."""
    sample = texts[:: max(len(texts) // 64, 1)]
    return max(min(CHUNK_ROWS, CHUNK_CHARS * len(sample) // max(sum(map(len, sample)), 1)), 8)
