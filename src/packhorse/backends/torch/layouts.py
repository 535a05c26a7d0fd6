"""The two ways to lay rows out for a transformers model: padded to a rectangle, or packed, without any padding."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import torch

from packhorse.backends.torch.attention import Pinned
from packhorse.backends.torch.reduce import Reducer
from packhorse.backends.torch.transfers import Copies, Plain
from packhorse.backends.torch.weights import pad_id
from packhorse.data import Batch, Int64s, offsets_of
from packhorse.packing.heads import PackedModel, Reads, position_table
from packhorse.packing.pack import Pack, row_positions, runs_of
from packhorse.sequences import attended


class Layout(Protocol):
    """copies: of this forward; None: plain ones, which nobody counts."""

    def __call__(self, batch: Batch, copies: Copies | None = None) -> torch.Tensor: ...  # [rows, width] float32, there
    def computed_tokens(self, lengths: Int64s) -> int: ...


class Padded:
    """Heads as wide as the vocabulary are called on the tokens that need them, all others by the model's forward."""

    def __init__(self, model: Any, reducer: Reducer, device: str, attention: str) -> None:
        self._model, self._reducer, self._device, self._pinned = model, reducer, device, Pinned(attention)
        self._pad_id = pad_id(model.config)
        self._apart = PackedModel(model)
        self.calls_head_apart = reducer.reduction.reads_vocabulary

    def __call__(self, batch: Batch, copies: Copies | None = None) -> torch.Tensor:
        inputs, lengths = self._moved(batch, copies)
        with torch.inference_mode(), self._pinned:
            if self._reducer.reduction.reads_vocabulary:
                return self._on_vocabulary(inputs, lengths, self.calls_head_apart)
            values: torch.Tensor = self._reducer(self._model(**inputs), lengths)
        return values

    def plain(self, batch: Batch, copies: Copies | None = None) -> torch.Tensor:
        """By the model's own forward, from the logits of all tokens where its head is as wide as the vocabulary."""
        if not self._reducer.reduction.reads_vocabulary:
            return self(batch, copies)
        inputs, lengths = self._moved(batch, copies)
        with torch.inference_mode(), self._pinned:
            return self._on_vocabulary(inputs, lengths, apart=False)

    def _on_vocabulary(self, inputs: dict[str, torch.Tensor], lengths: torch.Tensor, apart: bool) -> torch.Tensor:
        places, targets = inputs.pop("places"), inputs.pop("targets")
        values = (self._hidden(inputs) if apart else self._model(**inputs).logits).to(lengths.device)
        is_token = torch.arange(values.shape[1], device=values.device) < lengths[:, None]
        head = self._apart.logits if apart else _as_they_are
        return self._reducer.vocabulary(values[is_token], lengths, places, targets, head)

    def logits(self, batch: Batch, apart: bool) -> torch.Tensor:
        """[n, V] of every second token of a row: by the model's own forward, or by its head on these tokens alone."""
        inputs, _ = self._moved(batch, None)
        inputs = {name: inputs[name] for name in inputs if name not in ("places", "targets")}
        with torch.inference_mode(), self._pinned:
            if apart:
                return self._apart.logits(self._hidden(inputs)[0, ::2])
            logits: torch.Tensor = self._model(**inputs).logits[0, ::2]
            return logits

    def _hidden(self, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        """[B, S, H]."""
        return self._apart.padded_hidden(inputs)

    def computed_tokens(self, lengths: Int64s) -> int:
        return int(lengths.max(initial=0)) * len(lengths)

    def inputs(self, batch: Batch) -> dict[str, torch.Tensor]:
        """The model's keyword arguments."""
        return self._moved(batch, None)[0]

    def _moved(
        self, batch: Batch, copies: Copies | None, apart: bool = False
    ) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        """The model's keyword arguments, and the rows' lengths [rows], on the device."""
        arrays = self._arrays(batch) | {"lengths": batch.tokens.lengths}
        moved = (copies or Plain(self._device)).to_device(arrays, apart)
        return moved, moved.pop("lengths")

    def _arrays(self, batch: Batch) -> dict[str, np.ndarray]:
        """input_ids, and attention_mask only where there is padding: SDPA without a mask is faster."""
        ids, mask, type_ids = batch.padded(self._pad_id)
        arrays: dict[str, np.ndarray] = {"input_ids": ids}
        mask = attended(self._reducer.reduction, ids, mask)
        if not mask.all():
            arrays["attention_mask"] = mask.astype(np.int64)
        if type_ids is not None:
            arrays["token_type_ids"] = type_ids
        return arrays | self._reducer.inputs(batch)


class Compiled(Padded):
    """Through torch.compile, once for all shapes but batches of one row; where the head is as wide as the vocabulary,
    the body alone, for such a head is called on a few tokens at a time. On a CPU with frozen weights, which are packed
    for oneDNN's products: most of the gain there."""

    def __init__(self, model: Any, reducer: Reducer, device: str, attention: str) -> None:
        super().__init__(model, reducer, device, attention)
        options = {"freezing": True} if device == "cpu" else None
        whole = model if not reducer.reduction.reads_vocabulary else model.base_model
        self._compiled = torch.compile(whole, dynamic=True, options=options)

    def __call__(self, batch: Batch, copies: Copies | None = None) -> torch.Tensor:
        # Made out here: tensors of inference mode are compiled for anew. Apart: where a view begins in its memory is
        # one more thing that compiled code may hold fast.
        inputs, lengths = self._moved(batch, copies, apart=True)
        with torch.inference_mode(), self._pinned:
            if self._reducer.reduction.reads_vocabulary:
                return self._on_vocabulary(inputs, lengths, apart=True)
            values: torch.Tensor = self._reducer(self._compiled(**inputs), lengths)
        return values

    def _hidden(self, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        hidden: torch.Tensor = self._compiled(**self._apart.taken(inputs))[0]
        return hidden

    def _arrays(self, batch: Batch) -> dict[str, np.ndarray]:
        """Always with a mask, for without one the code is another."""
        arrays = super()._arrays(batch)
        return arrays | {"attention_mask": arrays.get("attention_mask", np.ones_like(arrays["input_ids"]))}


class Packed:
    """The model's attention implementation has to be packing.attention.NAME."""

    def __init__(self, model: Any, reducer: Reducer, device: str, reads: Reads, kernel: str) -> None:
        self._model, self._reducer, self._device, self._kernel = PackedModel(model, reads), reducer, device, kernel
        table = position_table(model)
        self._padding_idx = None if table is None else table.padding_idx

    def __call__(self, batch: Batch, copies: Copies | None = None) -> torch.Tensor:
        moved = (copies or Plain(self._device)).to_device(self._arrays(batch))
        pack = self._pack(batch.tokens.lengths, moved)
        reduction = self._reducer.reduction
        with torch.inference_mode():
            hidden = self._model.hidden(moved["ids"], moved.get("type_ids"), moved["positions"], pack)
            if reduction.reads_vocabulary:
                places, targets = moved["places"], moved["targets"]
                return self._reducer.vocabulary(hidden, moved["lengths"], places, targets, self._model.logits)
            if reduction.per == "token":
                return self._reducer.packed(hidden, pack, lambda: self._model.of_tokens(hidden))
            return self._reducer.packed(hidden, pack, lambda: self._model.head(hidden, pack, moved["ids"]))

    def computed_tokens(self, lengths: Int64s) -> int:
        return int(lengths.sum())

    def _arrays(self, batch: Batch) -> dict[str, np.ndarray]:
        tokens = batch.tokens
        arrays: dict[str, np.ndarray] = self._reducer.inputs(batch) | {
            "ids": tokens.ids.astype(np.int64),
            "positions": row_positions(tokens.ids, tokens.lengths, self._padding_idx),
            "lengths": np.ascontiguousarray(tokens.lengths, np.int64),
            "cu_seqlens": offsets_of(tokens.lengths).astype(np.int32),
        }
        return arrays if tokens.type_ids is None else arrays | {"type_ids": tokens.type_ids.astype(np.int64)}

    def _pack(self, lengths: Int64s, moved: dict[str, torch.Tensor]) -> Pack:
        """As make_pack makes it, of what was moved with the ids."""
        runs = () if moved["ids"].is_cuda else runs_of(lengths, offsets_of(lengths))
        return Pack(runs, moved["lengths"], moved["cu_seqlens"], int(lengths.max(initial=0)), self._kernel)


def to_device(array: np.ndarray, device: str) -> torch.Tensor:
    """Outside a forward of values: nobody counts it."""
    tensor = torch.from_numpy(array)
    return tensor.pin_memory().to(device, non_blocking=True) if device.startswith("cuda") else tensor.to(device)


def _as_they_are(logits: torch.Tensor) -> torch.Tensor:
    """In the place of a head whose logits are there."""
    return logits
