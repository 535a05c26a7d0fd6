"""The package nanotoken: WordPiece alone. Parallel by itself, on as many threads as cores, or not at all."""

from __future__ import annotations

import os

import numpy as np

from packhorse.tokenize.truncate import Raw

CACHE_ENTRIES = 1 << 17  # a thread: 16 MiB; the package's own 2**20 may take 8 GiB on 64 cores


class NanotokenTokenizer:
    """tokenizer_json: the text of a tokenizer.json. Raises ValueError for what is no WordPiece."""

    name = "nanotoken"
    avoided: tuple[str, ...] = ()

    def __init__(self, tokenizer_json: str, threads: int) -> None:
        import nanotoken

        if "NANOTOKEN_CACHE_ENTRIES" not in os.environ:
            nanotoken.set_cache_entries(CACHE_ENTRIES)
        self._tokenizer = nanotoken.Tokenizer.from_json(tokenizer_json)
        self._parallel = threads > 1

    def encode(self, texts: list[str]) -> Raw:
        made = self._tokenizer.encode_batch(texts, add_special_tokens=False, parallel=self._parallel)
        return Raw(made.ids.view(np.int32), np.diff(made.offsets))
