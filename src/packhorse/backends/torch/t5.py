"""T5's tokenizer from its SentencePiece model alone: transformers needs the package sentencepiece to read that file,
but not to build a tokenizer of its pieces."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from packhorse.backends.torch import spm

FILE = "spiece.model"
TYPES = ("t5", "mt5", "umt5", "longt5")
USUAL_EXTRA = 100  # of T5Tokenizer
NAMED = ("eos_token", "unk_token", "pad_token", "model_max_length", "truncation_side", "clean_up_tokenization_spaces")


def is_t5(folder: Path) -> bool:
    """Whether it is a T5 with that file and none of the tokenizers library."""
    if not (folder / FILE).is_file() or (folder / "tokenizer.json").is_file():
        return False
    return _object(folder / "config.json").get("model_type") in TYPES


def load_t5(folder: Path) -> Any:
    """transformers' T5Tokenizer: the file's pieces, and behind them <extra_id_N>, the last first. Raises ModelError for
    a file that is not understood, TypeError or ValueError for settings that are not."""
    from transformers import AddedToken, T5Tokenizer

    model = spm.read_model(folder / FILE)
    config = _object(folder / "tokenizer_config.json")
    count = int(config.get("extra_ids", USUAL_EXTRA))
    extra = [f"<extra_id_{i}>" for i in range(count - 1, -1, -1)]
    special = [AddedToken(p.text, normalized=False, special=True) for p in model.pieces if p.kind == spm.CONTROL]
    return T5Tokenizer(
        vocab=[(p.text, p.score) for p in model.pieces] + [(name, 0.0) for name in extra],
        extra_ids=count,
        additional_special_tokens=special + extra,
        _spm_precompiled_charsmap=model.charsmap or None,
        **{name: _content(config[name]) for name in NAMED if config.get(name) is not None},
    )


def _content(value: Any) -> Any:
    return value["content"] if isinstance(value, dict) else value


def _object(path: Path) -> dict[str, Any]:
    value = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return value if isinstance(value, dict) else {}
