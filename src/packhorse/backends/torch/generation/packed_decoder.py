"""A causal transformers model on packs: several prompts in one sequence, or one token of each running row.

The model's own forward runs, its head as its author wrote it; only what attention looks at is ours.
"""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from packhorse.backends.torch.generation.kv_attention import Layers, PromptKeys, StepKeys
from packhorse.backends.torch.generation.slots import R, Slots
from packhorse.backends.torch.layouts import to_device
from packhorse.data import Int32s, Int64s, offsets_of
from packhorse.packing import attention
from packhorse.packing.attention import PackingError
from packhorse.packing.pack import KeyValues, Pack, make_pack, runs_of


class PackedDecoder:
    """Its calls stand inside `with decoder.installed():`."""

    def __init__(self, model: Any, device: str) -> None:
        self._model, self._device = model, device
        takes = set(inspect.signature(model.forward).parameters)
        self.takes_positions, self.takes_places = "position_ids" in takes, "logits_to_keep" in takes

    @contextlib.contextmanager
    def installed(self) -> Iterator[None]:
        """The model attends by packing/attention.py meanwhile."""
        attention.register()
        before = self._model.config._attn_implementation
        self._model.set_attn_implementation(attention.NAME)
        try:
            with torch.inference_mode():
                yield
        finally:
            self._model.set_attn_implementation(before)

    def prefill(
        self, prompts: Sequence[Int32s], prefix: Sequence[Layers] = (), prefix_tokens: int = 0
    ) -> tuple[torch.Tensor, PromptKeys]:
        """Logits [n, V] behind each prompt, and the keys of all, side by side. prefix: what stands before each of them,
        so many tokens. Prompts of one length are attended together where they are neighbours."""
        lengths: Int64s = np.array([len(prompt) for prompt in prompts], np.int64)
        starts = offsets_of(lengths)
        keys = PromptKeys(runs_of(lengths, starts), prefix)
        pack = make_pack(lengths, self._device)
        positions = np.arange(starts[-1]) - np.repeat(starts[:-1], lengths) + prefix_tokens
        ids = np.concatenate(prompts).astype(np.int64)
        return self._forward(ids, positions, pack, keys, pack.ends), keys

    def decode(self, slots: Slots[R]) -> tuple[list[R], torch.Tensor]:
        """Puts the last id of every running row into its slot. The rows, and logits [n, V] behind each."""
        slots.make_room()
        running, groups = slots.running, slots.groups()
        ids = np.array([r.last_id for r in running], np.int64)
        positions = np.concatenate([group.lengths for group in groups]) - 1
        pack = make_pack(np.ones(len(ids), np.int64), self._device)
        logits = self._forward(ids, positions, pack, StepKeys(groups, self._device), None)
        for r in running:
            r.length += 1
        return running, logits

    def _forward(
        self, ids: Int64s, positions: Int64s, pack: Pack, cache: KeyValues, places: torch.Tensor | None
    ) -> torch.Tensor:
        """ids, positions [T] -> logits [len(places) or T, V]."""
        pack = dataclasses.replace(pack, cache=cache)
        inputs: dict[str, Any] = {"input_ids": to_device(ids, self._device)[None], "pack": pack, "use_cache": False}
        if self.takes_positions:
            inputs["position_ids"] = to_device(positions, self._device)[None]
        if places is not None and self.takes_places:
            inputs["logits_to_keep"], places = places, None
        logits: torch.Tensor = self._model(**inputs, return_dict=True).logits[0]
        if not pack.attended:
            raise PackingError(f"{type(self._model).__name__} does not use transformers' AttentionInterface")
        return logits if places is None else logits[places]
