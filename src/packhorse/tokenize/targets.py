"""Words that are to stand in the place of a mask, as tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from packhorse.errors import UsageError


class Targets(NamedTuple):
    ids: tuple[int, ...]  # different ones, in the order of the words
    notes: tuple[str, ...]  # words that the vocabulary does not have


def check_top_k(top_k: int, backend: Any) -> None:
    """Raises UsageError where there are fewer tokens. backend: a tokenizers.Tokenizer."""
    if not 1 <= top_k <= backend.get_vocab_size():
        raise UsageError(f"--top-k {top_k}: the vocabulary has {backend.get_vocab_size():,} tokens; 1 is the least")


def find_targets(backend: Any, words: Sequence[str]) -> Targets:
    """A word's token, else the first of those that the tokenizer makes of it, as in transformers' pipeline; words of
    which it makes none are left out. backend: a tokenizers.Tokenizer. Raises UsageError where none is left."""
    ids: list[int] = []
    notes = []
    for word in words:
        found = backend.token_to_id(word)
        made = backend.encode(word, add_special_tokens=False).ids if found is None else [found]
        ids += made[:1]
        if found is None:
            instead = f"{backend.id_to_token(made[0])!r} stands for it" if made else "it is left out"
            notes.append(f"--targets: the vocabulary has no {word!r}; {instead}")
    if words and not ids:
        raise UsageError(f"--targets {','.join(words)}: the tokenizer makes no token of any of these; name other words")
    return Targets(tuple(dict.fromkeys(ids)), tuple(notes))
