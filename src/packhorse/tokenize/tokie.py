"""The package tokie: WordPiece, BPE and Unigram. Parallel by itself, on as many threads as cores."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from packhorse.tokenize.truncate import Raw


class TokieTokenizer:
    """tokenizer_json: the text of a tokenizer.json. Raises whatever the package raises where it cannot read it."""

    name = "tokie"
    avoided = ("\t'",)  # before 's, a tab: 0.1.4 takes the apostrophe from the contraction

    def __init__(self, tokenizer_json: str, threads: int) -> None:
        import tokie

        with tempfile.TemporaryDirectory() as folder:  # it reads JSON from files alone
            path = Path(folder) / "tokenizer.json"
            path.write_text(tokenizer_json, encoding="utf-8")
            self._tokenizer: Any = tokie.Tokenizer.from_json(str(path))
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()

    def encode(self, texts: list[str]) -> Raw:
        ids, lengths = self._tokenizer.encode_batch_flat(texts, add_special_tokens=False)
        return Raw(ids.view(np.int32), lengths.astype(np.int64))
