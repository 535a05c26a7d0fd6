"""How texts are encoded for late interaction: a vector for each token, as ColBERT has it (Khattab & Zaharia, 2020)."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class LateInteraction:
    """What a model's folder says about documents, or about queries.

    marker: token that tells one from the other, behind the special tokens before a text; the text itself where the
    tokenizer has no such token. skipped: tokens that leave no vector. length: most tokens of a text, special ones and
    marker included. expand_to: shorter texts are filled up to so many tokens with expansion_token (None: the mask
    token), which leave vectors too. attends: whether tokens attend to those.
    """

    is_query: bool = False
    marker: str = ""
    skipped: tuple[str, ...] = ()
    length: int | None = None
    expand_to: int | None = None
    expansion_token: str | None = None
    attends: bool = False
    is_fixed: bool = False  # no text may have more tokens than expand_to
