"""Tokens that late interaction sets beside those of a text: a marker before it, masks behind it; and those it skips."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import numpy as np

from packhorse.data import Bools, Int32s, Tokens, offsets_of
from packhorse.errors import ModelError, UsageError
from packhorse.late_interaction import LateInteraction
from packhorse.tokenize.huge import TokenizeSettings
from packhorse.tokenize.truncate import Layout


class LateTokens(NamedTuple):
    """Ids of a LateInteraction's tokens."""

    marker: int | None = None
    skipped: Int32s = np.empty(0, np.int32)
    expansion: int = -1
    expand_to: int = 0  # tokens

    def layout(self, layout: Layout) -> Layout:
        """With the marker behind the special tokens before the text."""
        if self.marker is None:
            return layout
        gaps, types = layout.gaps, layout.gap_types
        marked, of_type = (*gaps[0], self.marker), (*types[0], layout.text_types[0])
        return dataclasses.replace(layout, gaps=(marked, *gaps[1:]), gap_types=(of_type, *types[1:]))

    def expanded(self, tokens: Tokens) -> Tokens:
        """Shorter rows filled up behind."""
        lengths = np.maximum(tokens.lengths, self.expand_to)
        offsets = offsets_of(lengths)
        if offsets[-1] == tokens.offsets[-1]:
            return tokens
        is_own = np.arange(offsets[-1]) - np.repeat(offsets[:-1], lengths) < np.repeat(tokens.lengths, lengths)
        ids = np.full(len(is_own), self.expansion, np.int32)
        ids[is_own] = tokens.ids
        if tokens.type_ids is None:
            return Tokens(ids, offsets)
        type_ids = np.zeros(len(is_own), np.int32)
        type_ids[is_own] = tokens.type_ids
        return Tokens(ids, offsets, type_ids)

    def is_skipped(self, tokens: Tokens) -> Bools | None:
        """[T]"""
        return np.isin(tokens.ids, self.skipped) if len(self.skipped) else None


def late_tokens(
    backend: Any, late: LateInteraction | None, settings: TokenizeSettings
) -> tuple[LateTokens, TokenizeSettings]:
    """Their ids in a tokenizers.Tokenizer, and the settings, with a marker that is no token of it as a prompt. Words to
    be skipped that are no token of it are none. settings.mask_id: the mask token, where texts are expanded.

    Raises ModelError where it has no such token to expand with."""
    if late is None:
        return LateTokens(), settings
    names = [late.marker, late.marker.strip()]  # PyLate's own ends with a space
    marker = next((found for name in names if name and (found := backend.token_to_id(name)) is not None), None)
    if marker is None:
        settings = dataclasses.replace(settings, prompt=late.marker + settings.prompt)
    found = [backend.token_to_id(word) for word in late.skipped]
    skipped = np.array([token for token in found if token is not None], np.int32)
    expansion = expansion_id(backend, late, settings.mask_id) if late.expand_to else -1
    return LateTokens(marker, skipped, expansion, late.expand_to or 0), settings


def expansion_id(backend: Any, late: LateInteraction, mask_id: int) -> int:
    """Id of the token that texts are filled up with. Raises ModelError where the tokenizer does not have it."""
    if late.expansion_token is None:
        return mask_id
    found = backend.token_to_id(late.expansion_token)
    if found is None:
        raise ModelError(f"queries are to be filled up with {late.expansion_token!r}, which is no token here")
    return int(found)


def check_windows(settings: TokenizeSettings) -> None:
    """Raises UsageError for a prompt, which the first of several windows alone would have."""
    if settings.prompt:
        raise UsageError("--long windows: the model puts a prompt before a text, and only the first window has it")
