"""Special tokens that a model's folder names."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from packhorse.errors import ModelError

FILES = ("tokenizer_config.json", "special_tokens_map.json")
USUAL_MASKS = ("[MASK]", "<mask>")


def mask_token(folder: Path, backend: Any) -> tuple[str, int]:
    """Text and id of the mask token. backend: a tokenizers.Tokenizer. Raises ModelError where there is none."""
    found = find_mask(folder, backend)
    if found is None:
        raise ModelError(f"{folder}: its tokenizer has no mask token, which this task needs; is it the right model?")
    return found


def find_mask(folder: Path, backend: Any) -> tuple[str, int] | None:
    """Text and id of the mask token, as the folder's files name it, else by its usual names. Raises ModelError where
    one is no JSON."""
    names = [name for name in (_named(folder / file, "mask_token") for file in FILES) if name]
    for name in (*names, *USUAL_MASKS):
        found = backend.token_to_id(name)
        if found is not None:
            return name, int(found)
    return None


def unknown_token(folder: Path, backend: Any) -> int | None:
    """Id of the token that stands for what the vocabulary does not have, as the folder's files name it, else as the
    tokenizer does; None where there is none. backend: a tokenizers.Tokenizer. Raises ModelError."""
    model = json.loads(backend.to_str())["model"]
    if model.get("unk_id") is not None:
        return int(model["unk_id"])
    names = [name for name in (_named(folder / file, "unk_token") for file in FILES) if name]
    found = [backend.token_to_id(name) for name in (*names, model.get("unk_token")) if name]
    return next((int(token) for token in found if token is not None), None)


def pad_token(folder: Path, backend: Any) -> int:
    """Id of the padding token that the folder's files name; -1 where there is none. Raises ModelError."""
    names = [name for name in (_named(folder / file, "pad_token") for file in FILES) if name]
    found = [backend.token_to_id(name) for name in names]
    return next((int(token) for token in found if token is not None), -1)


def _named(path: Path, key: str) -> str | None:
    if not path.is_file():
        return None
    try:
        value = json.loads(path.read_text(encoding="utf-8")).get(key)
    except (json.JSONDecodeError, AttributeError, UnicodeDecodeError) as error:
        raise ModelError(f"{path}: no JSON object: {error}") from error
    return value.get("content") if isinstance(value, dict) else value


def add_lowercase(backend: Any) -> None:
    """do_lower_case of sentence-transformers: lower-cases before whatever the tokenizer normalizes itself."""
    from tokenizers import normalizers

    first = normalizers.Lowercase()
    if '"Lowercase"' not in json.dumps(json.loads(backend.to_str())["normalizer"]):
        backend.normalizer = normalizers.Sequence([first, backend.normalizer]) if backend.normalizer else first
