"""What a tokenizer knows of single tokens, for tasks that show them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from packhorse.sequences import Vocabulary
from packhorse.tokenize.detokenize import cleans_up, detokenizer
from packhorse.tokenize.special import find_mask, pad_token, unknown_token
from packhorse.tokenize.targets import find_targets


def vocabulary(folder: Path, backend: Any) -> Vocabulary:
    """backend: a tokenizers.Tokenizer, of which a copy is used. Raises ModelError where a file of the folder is no
    JSON."""
    copy, is_cleaned = type(backend).from_str(backend.to_str()), cleans_up(folder, backend)
    unknown, mask = unknown_token(folder, backend), find_mask(folder, backend)

    def join(tokens: Sequence[str]) -> str:
        return str(copy.decoder.decode(list(tokens))) if copy.decoder is not None else " ".join(tokens)

    def token_text(token: int) -> str:
        return copy.id_to_token(token) or ""  # a model may have more outputs than there are tokens

    return Vocabulary(
        detokenize=detokenizer(backend, is_cleaned),
        decode=detokenizer(backend, is_cleaned, skips_special=False),
        token_text=token_text,
        join=join,
        unknown_id=-1 if unknown is None else unknown,
        marks_subwords=bool(json.loads(backend.to_str())["model"].get("continuing_subword_prefix")),
        pad_id=pad_token(folder, backend),
        mask_id=-1 if mask is None else mask[1],
        target_ids=lambda words: find_targets(copy, words).ids,
    )
