"""Rows longer than the model takes are errors, where they are not to be cut."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from packhorse.data import RowError
from packhorse.errors import UsageError
from packhorse.sequences import Tokenized
from packhorse.stages import Tokenizer
from packhorse.tokenize.huge import MAX_UNTRUNCATED_CHARS

KIND = "prompt_too_long"
UNTOKENIZED = "text_too_long"  # what the other tokenizer says of a text that it does not even begin


class LimitedTokenizer:
    """The rows of another tokenizer, which must not truncate; those beyond a limit in error, without their tokens.

    max_length: tokens that the model takes, of which max_new_tokens are left for what it writes (0 where its output
    has a place of its own). Raises UsageError where that leaves none for a prompt.
    """

    def __init__(self, tokenizer: Tokenizer, max_length: int, max_new_tokens: int = 0) -> None:
        if max_new_tokens >= max_length:
            raise UsageError(
                f"--max-new-tokens {max_new_tokens}: the model takes {max_length:,} tokens, prompt and output "
                f"together, so that none is left for a prompt; at most {max_length - 1:,} can be written"
            )
        self._tokenizer = tokenizer
        self._max_length, self._max_new_tokens = max_length, max_new_tokens

    def close(self) -> None:
        self._tokenizer.close()

    def tokenize(self, texts: Sequence[Any], pairs: Sequence[Any] | None) -> Tokenized:
        """As the other tokenizer does."""
        made = self._tokenizer.tokenize(texts, pairs)
        is_long = made.tokens.lengths > self._max_length - self._max_new_tokens
        seen = {int(row): f"{made.tokens.lengths[row]:,} tokens" for row in np.flatnonzero(is_long)}
        huge = [row for row, error in made.errors.items() if error.kind == UNTOKENIZED]
        seen |= dict.fromkeys(huge, f"more than {MAX_UNTRUNCATED_CHARS:,} characters")
        errors = {row: self._error(what) for row, what in seen.items()}
        lengths = np.where(is_long, 0, made.tokens.lengths)
        tokens = made.tokens.where(np.repeat(~is_long, made.tokens.lengths), lengths)
        return dataclasses.replace(made, tokens=tokens, errors={**made.errors, **errors})

    def _error(self, seen: str) -> RowError:
        reserved = f" with {self._max_new_tokens:,} to generate" if self._max_new_tokens else ""
        return RowError(KIND, f"{seen}, and the model takes {self._max_length:,}{reserved}; --long truncate cuts it")
