"""Tokenizing with the Rust tokenizers of Hugging Face, into flat ids."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain
from typing import Any, NamedTuple

import numpy as np

from packhorse.data import Int32s, Int64s, RowError, Tokenized, Tokens, offsets_of

CHUNK_ROWS = 500  # small pieces stay in the caches: 78,000 rows/s on 2 cores, 71,000 with 2,000
CHUNK_CHARS = 1_000_000
# A text is cut here before tokenizing (tokenizers take 13 s for 10 MB even when they truncate); see _head.
MIN_TEXT_CHARS = 200_000
CHARS_PER_TOKEN = 32
MAX_UNTRUNCATED_CHARS = 1_000_000


@dataclass(frozen=True, slots=True)
class TokenizeSettings:
    """max_length in tokens, special ones included; None: never truncated."""

    max_length: int | None
    prompt: str = ""
    truncation_side: str = "right"
    with_type_ids: bool = False
    threads: int = 1


class _Piece(NamedTuple):
    """Some rows' result, in order."""

    ids: Int32s
    type_ids: Int32s | None
    lengths: Int64s
    lost: Int64s  # [n] tokens cut off


class FastTokenizer:
    """Texts to Tokens, over threads.

    Each thread works on its own copy of the tokenizer (a shared one raises "Already borrowed"), and the library's
    own thread pool is switched off for this process by TOKENIZERS_PARALLELISM=false unless the variable is set:
    our threads overlap the Rust part of one piece with the Python part of another, 1.25x the rate on 2 cores.
    """

    def __init__(self, backend: Any, settings: TokenizeSettings) -> None:
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        backend.no_padding()
        backend.no_truncation()
        self.fingerprint = hashlib.sha256((backend.to_str() + repr(settings.prompt)).encode()).hexdigest()
        self._settings = settings
        self._whole = _copy(backend)  # for counting the tokens of truncated pairs
        if settings.max_length is not None:
            backend.enable_truncation(settings.max_length, direction=settings.truncation_side)
        self._copies = [_copy(backend) for _ in range(settings.threads)]
        self._pool = ThreadPoolExecutor(settings.threads, "tokenize")
        self._num_special = backend.num_special_tokens_to_add(False)

    def close(self) -> None:
        self._pool.shutdown()

    def tokenize(self, texts: Sequence[str | None], pairs: Sequence[str | None] | None) -> Tokenized:
        """One row a text (and its pair). None, or a text that cannot be done, is a row in error, without tokens."""
        inputs, cut, errors = self._inputs(texts, pairs)
        todo = [i for i in range(len(texts)) if i not in errors]
        pieces = self._pieces([inputs[i] for i in todo])
        lengths, lost = np.zeros(len(texts), np.int64), np.zeros(len(texts), np.int64)
        lengths[todo] = np.concatenate([p.lengths for p in pieces]) if pieces else 0
        lost[todo] = np.concatenate([p.lost for p in pieces]) if pieces else 0
        ids = np.concatenate([p.ids for p in pieces]) if pieces else np.empty(0, np.int32)
        type_ids = np.concatenate([p.type_ids for p in pieces]) if pieces and self._settings.with_type_ids else None
        tokens = Tokens(ids, offsets_of(lengths), type_ids)
        failed = self._cut_too_early(cut, lost) | {
            i: RowError("no_tokens", "the tokenizer makes no token of this text") for i in todo if not lengths[i]
        }
        if failed:
            lost[list(failed)] = 0
            tokens = _without(tokens, list(failed))
        return Tokenized(tokens, errors | failed, int((lost > 0).sum()), int(lost.sum()))

    def _inputs(
        self, texts: Sequence[str | None], pairs: Sequence[str | None] | None
    ) -> tuple[list[Any], dict[int, bool], dict[int, RowError]]:
        """What the library takes for each row; which rows were cut (True: not at white space); rows in error."""
        errors: dict[int, RowError] = {}
        columns = [texts] if pairs is None else [texts, pairs]
        for column in columns:
            errors |= {i: RowError("null_text", "the text is null") for i, t in enumerate(column) if t is None}
        limit = self._max_chars()
        cut: dict[int, bool] = {}
        heads = []
        for column in columns:
            head = list(column)
            for i in [i for i, t in enumerate(column) if t is not None and len(t) > limit]:
                head[i], is_hard = _head(column[i] or "", limit)
                cut[i] = cut.get(i, False) or is_hard
            heads.append(head)
        if self._settings.max_length is None:
            errors |= {
                i: _too_long(f"more than {limit:,} characters, and this model has no maximum length: set --max-length")
                for i in cut
            }
        prompt = self._settings.prompt
        firsts = [prompt + t if t is not None else "" for t in heads[0]] if prompt else heads[0]
        return (list(firsts) if pairs is None else list(zip(firsts, heads[1], strict=True))), cut, errors

    def _max_chars(self) -> int:
        if self._settings.max_length is None:
            return MAX_UNTRUNCATED_CHARS
        return max(MIN_TEXT_CHARS, CHARS_PER_TOKEN * self._settings.max_length)

    def _cut_too_early(self, cut: dict[int, bool], lost: Int64s) -> dict[int, RowError]:
        """Rows whose kept tokens may depend on where the text was cut: fewer tokens before the cut than were needed."""
        need = self._settings.max_length or 0
        return {
            i: _too_long(
                f"its first {self._max_chars():,} characters make fewer tokens than the maximum length of {need}"
            )
            for i, is_hard in cut.items()
            if lost[i] < (need if is_hard else 1)
        }

    def _pieces(self, inputs: list[Any]) -> list[_Piece]:
        rows = _piece_rows(inputs)
        starts = range(0, len(inputs), rows)
        free = list(self._copies)  # as many copies as threads: pop never fails, and is atomic

        def encode(start: int) -> _Piece:
            tokenizer = free.pop()
            try:
                return self._encode(tokenizer, inputs[start : start + rows])
            finally:
                free.append(tokenizer)

        return list(self._pool.map(encode, starts))

    def _encode(self, tokenizer: Any, inputs: list[Any]) -> _Piece:
        encodings = tokenizer.encode_batch_fast(inputs)
        ids = [e.ids for e in encodings]
        lengths = np.fromiter(map(len, ids), np.int64, len(ids))
        total = int(lengths.sum())
        type_ids = None
        if self._settings.with_type_ids:
            type_ids = np.fromiter(chain.from_iterable([e.type_ids for e in encodings]), np.int32, total)
        flat = np.fromiter(chain.from_iterable(ids), np.int32, total)
        return _Piece(flat, type_ids, lengths, self._lost(encodings, inputs, lengths))

    def _lost(self, encodings: list[Any], inputs: list[Any], lengths: Int64s) -> Int64s:
        lost = np.zeros(len(lengths), np.int64)
        full = np.flatnonzero(lengths == self._settings.max_length)
        for i in full:
            if isinstance(inputs[i], str):
                lost[i] = sum(len(o) - self._num_special for o in encodings[i].overflowing)
            elif encodings[i].overflowing:
                lost[i] = len(self._whole.encode(*inputs[i])) - lengths[i]
        return lost


def _copy(backend: Any) -> Any:
    return type(backend).from_str(backend.to_str())


def _piece_rows(inputs: list[Any]) -> int:
    """Rows a piece: enough to pay for the hand-over, few enough that threads end together."""
    sample = inputs[:: max(len(inputs) // 64, 1)]
    chars = sum(len(x) if isinstance(x, str) else len(x[0]) + len(x[1]) for x in sample)
    return max(min(CHUNK_ROWS, CHUNK_CHARS * len(sample) // max(chars, 1)), 8)


def _head(text: str, limit: int) -> tuple[str, bool]:
    """The text up to the last white space before the limit, or (True) up to the limit itself where none is near."""
    cut = max(text.rfind(space, limit - limit // 20, limit) for space in " \n\t")
    return (text[:cut], False) if cut >= 0 else (text[:limit], True)


def _too_long(why: str) -> RowError:
    return RowError("text_too_long", f"the text is too long to tokenize: {why}")


def _without(tokens: Tokens, rows: list[int]) -> Tokens:
    """The same rows, those given emptied."""
    lengths = tokens.lengths.copy()
    keep = np.repeat(~np.isin(np.arange(len(lengths)), rows), lengths)
    lengths[rows] = 0
    return Tokens(tokens.ids[keep], offsets_of(lengths), None if tokens.type_ids is None else tokens.type_ids[keep])
