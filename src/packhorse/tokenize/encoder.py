"""Texts to raw tokens. `HfEncoder` is the reference: the Rust tokenizers of Hugging Face, over threads."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from typing import Any, NamedTuple, Protocol

import numpy as np

from packhorse.tokenize.truncate import Raw

CHUNK_ROWS = 500  # small pieces stay in the caches: 78,000 rows/s on 2 cores, 71,000 with 2,000
CHUNK_CHARS = 1_000_000


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
        self._copies = [type(backend).from_str(backend.to_str()) for _ in range(threads)]
        self._pool = ThreadPoolExecutor(threads, "tokenize")

    def close(self) -> None:
        self._pool.shutdown()

    def encode(self, columns: list[list[str]]) -> list[Raw]:
        return [self.encode_column(texts) for texts in columns]

    def encode_column(self, texts: list[str]) -> Raw:
        """Raw tokens of all texts, in order."""
        rows = _piece_rows(texts)
        free = list(self._copies)  # as many as threads: pop never fails, and is atomic

        def encode(start: int) -> Raw:
            tokenizer = free.pop()
            try:
                return _encode_piece(tokenizer, texts[start : start + rows])
            finally:
                free.append(tokenizer)

        return joined(list(self._pool.map(encode, range(0, len(texts), rows))))


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


def _piece_rows(texts: list[str]) -> int:
    """Rows a piece: enough to pay for the hand-over, few enough that threads end together."""
    sample = texts[:: max(len(texts) // 64, 1)]
    return max(min(CHUNK_ROWS, CHUNK_CHARS * len(sample) // max(sum(map(len, sample)), 1)), 8)
