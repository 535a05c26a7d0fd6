"""Ids back to text, as transformers' tokenizers decode them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from packhorse.data import Int32s
from packhorse.errors import ModelError
from packhorse.stages import Detokenize

FLAG = "clean_up_tokenization_spaces"
FLAG_OF_BPE = "clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output"
# A space before these is the tokenizer's, not the text's: transformers' clean_up_tokenization, one after the other.
CLEANED = (
    (" .", "."), (" ?", "?"), (" !", "!"), (" ,", ","), (" ' ", "'"), (" n't", "n't"), (" 'm", "'m"), (" 's", "'s"),
    (" 've", "'ve"), (" 're", "'re"),
)  # fmt: skip


def detokenizer(backend: Any, cleans_up: bool = False, skips_special: bool = True) -> Detokenize:
    """backend: a tokenizers.Tokenizer, of which a copy is used. Gives what the tokenizer's decode(ids,
    skip_special_tokens=skips_special) gives. cleans_up: whether spaces before punctuation are taken away."""
    copy = type(backend).from_str(backend.to_str())

    def detokenize(outputs: Sequence[Int32s]) -> list[str]:
        texts: list[str] = copy.decode_batch([ids.tolist() for ids in outputs], skip_special_tokens=skips_special)
        return [_cleaned(text) for text in texts] if cleans_up else texts

    return detokenize


def cleans_up(folder: Path, backend: Any) -> bool:
    """Whether the model's tokenizer_config.json asks for it; of a BPE tokenizer, whose texts it would damage,
    transformers wants to be asked by a longer name as well. Raises ModelError."""
    path = folder / "tokenizer_config.json"
    if not path.is_file():
        return False
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{path}: cannot be read as JSON: {error}") from error
    if not isinstance(config, dict):
        raise ModelError(f"{path}: holds a JSON {type(config).__name__}, not an object")
    is_bpe = type(backend.model).__name__ == "BPE"
    return bool(config.get(FLAG)) and (not is_bpe or bool(config.get(FLAG_OF_BPE)))


def _cleaned(text: str) -> str:
    for spaced, plain in CLEANED:
        text = text.replace(spaced, plain)
    return text
