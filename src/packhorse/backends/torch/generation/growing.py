"""Keys and values with room for more: a step writes its own token where transformers copies all that came before."""

from __future__ import annotations

from typing import Any

import torch
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer, EncoderDecoderCache

# Tokens to come that room is made for: one copy of what is there in so many steps.
ROOM = 64


class Growing:
    """A tensor [rows, heads, tokens, width] that grows along its tokens."""

    def __init__(self) -> None:
        self._buffer: torch.Tensor | None = None
        self._view: torch.Tensor | None = None

    def append(self, seen: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
        """seen: what the last append returned, or other rows of it; [0] before the first one."""
        length = seen.shape[-2] if seen.numel() else 0
        total = length + new.shape[-2]
        if self._buffer is None or seen is not self._view or total > self._buffer.shape[-2]:
            self._buffer = new.new_empty(*new.shape[:-2], total + ROOM, new.shape[-1])
            if length:
                self._buffer[..., :length, :] = seen
        self._buffer[..., length:total, :] = new
        self._view = self._buffer[..., :total, :]
        return self._view


class GrowingLayer(DynamicLayer):
    """Takes a DynamicLayer's place in a cache."""

    keys: Any  # [rows, heads, tokens, width]; [0] before the first token
    values: Any

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._growing_keys, self._growing_values = Growing(), Growing()

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """[rows, heads, new tokens, width] each -> all tokens so far."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        self.keys = self._growing_keys.append(self.keys, key_states)
        self.values = self._growing_values.append(self.values, value_states)
        return self.keys, self.values


def empty_cache(model: Any) -> Cache | None:
    """The cache that generate() would make, its plain layers growing; None where the model makes its own.

    Layers of other kinds (sliding windows, states of linear attention) stay as they are.
    """
    if not model._supports_default_dynamic_cache():
        return None
    config = model.config.get_text_config(decoder=True)
    own = DynamicCache(config=config)
    own.layers = [GrowingLayer() if type(layer) is DynamicLayer else layer for layer in own.layers]
    return EncoderDecoderCache(own, DynamicCache(config=config)) if model.config.is_encoder_decoder else own
