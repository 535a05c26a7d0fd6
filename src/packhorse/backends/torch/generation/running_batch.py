"""What the continuous schedule asks of a model: prompts read, rows that enter, step and leave.

Two kinds: PackedBatch runs the torch model itself; PagedBatch (paged_batch.py) its forward in OpenVINO.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Generic, Protocol

import torch

from packhorse.backends.torch.generation.packed_decoder import PackedDecoder
from packhorse.backends.torch.generation.slots import R, Slots, Span
from packhorse.data import Int32s

# What stands for the keys and values of a text that was read; each kind of batch has its own.
Keys = Any


class RunningBatch(Protocol[R]):
    """Logits are valid until the next call."""

    windows: Mapping[int, int | None]  # that attention was told of, by layer; of the last texts read

    @property
    def num_running(self) -> int: ...

    def prefill(self, texts: Sequence[Int32s], behind: Keys | None = None) -> tuple[torch.Tensor, list[Keys]]:
        """Logits [n, V] behind each text, and the keys of each, what it goes on from among them. behind: of a text that
        was read alone."""

    def forget(self, keys: Sequence[Keys]) -> None:
        """No row enters with these any more, and no text goes on from them."""

    def enter(self, running: R, keys: Keys) -> None:
        """A row whose `length` tokens so far are those of the keys."""

    def decode(self) -> tuple[list[R], torch.Tensor]:
        """Reads the last id of every running row: the rows, one token longer, and logits [n, V] behind each."""

    def leave(self, finished: Sequence[R]) -> None: ...


class PackedBatch(Generic[R]):
    """Keys are spans of forwards over prompts. Its calls stand inside the decoder's `installed()`."""

    def __init__(self, decoder: PackedDecoder) -> None:
        self._decoder = decoder
        self._slots: Slots[R] = Slots()
        self.windows: Mapping[int, int | None] = {}

    @property
    def num_running(self) -> int:
        return len(self._slots.running)

    def prefill(
        self, texts: Sequence[Int32s], behind: list[Span] | None = None
    ) -> tuple[torch.Tensor, list[list[Span]]]:
        before = behind or []
        num_before = sum(span.stop - span.start for span in before)
        logits, keys = self._decoder.prefill(texts, [span.layers for span in before], num_before)
        self.windows = keys.windows
        spans, end = [], 0
        for text in texts:
            spans.append([*before, Span(keys.layers, end, end + len(text))])
            end += len(text)
        return logits, spans

    def forget(self, keys: Sequence[list[Span]]) -> None:
        """Tensors go with their last reference."""

    def enter(self, running: R, keys: list[Span]) -> None:
        self._slots.enter(running, keys)

    def decode(self) -> tuple[list[R], torch.Tensor]:
        return self._decoder.decode(self._slots)

    def leave(self, finished: Sequence[R]) -> None:
        self._slots.leave(finished)
