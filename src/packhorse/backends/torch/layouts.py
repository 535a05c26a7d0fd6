"""The two ways to lay rows out for a transformers model: padded to a rectangle, or packed, without any padding."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import torch

from packhorse.backends.torch.attention import Pinned
from packhorse.backends.torch.reduce import Reducer
from packhorse.backends.torch.weights import pad_id
from packhorse.data import Batch, Int64s
from packhorse.packing.heads import PackedModel, Reads, position_table
from packhorse.packing.pack import make_pack, row_positions


class Layout(Protocol):
    def __call__(self, batch: Batch) -> torch.Tensor: ...  # [rows, width] float32, on the device
    def computed_tokens(self, lengths: Int64s) -> int: ...


class Padded:
    def __init__(self, model: Any, reducer: Reducer, device: str, attention: str) -> None:
        self._model, self._reducer, self._device, self._pinned = model, reducer, device, Pinned(attention)
        self._pad_id = pad_id(model.config)

    def __call__(self, batch: Batch) -> torch.Tensor:
        with torch.inference_mode(), self._pinned:
            values: torch.Tensor = self._reducer(self._model(**self.inputs(batch)), self._lengths(batch))
        return values

    def computed_tokens(self, lengths: Int64s) -> int:
        return int(lengths.max(initial=0)) * len(lengths)

    def inputs(self, batch: Batch) -> dict[str, torch.Tensor]:
        """input_ids, and attention_mask only where there is padding: SDPA without a mask is faster."""
        ids, mask, type_ids = batch.padded(self._pad_id)
        inputs = {"input_ids": to_device(ids, self._device)}
        if not mask.all():
            inputs["attention_mask"] = to_device(mask.astype(np.int64), self._device)
        if type_ids is not None:
            inputs["token_type_ids"] = to_device(type_ids, self._device)
        return inputs

    def _lengths(self, batch: Batch) -> torch.Tensor:
        return to_device(batch.tokens.lengths, self._device)


class Compiled(Padded):
    """Through torch.compile, once for all shapes but batches of one row. On a CPU with frozen weights, which are packed
    for oneDNN's products: most of the gain there."""

    def __init__(self, model: Any, reducer: Reducer, device: str, attention: str) -> None:
        super().__init__(model, reducer, device, attention)
        options = {"freezing": True} if device == "cpu" else None
        self._compiled = torch.compile(model, dynamic=True, options=options)

    def __call__(self, batch: Batch) -> torch.Tensor:
        inputs = self.inputs(batch)  # made out here: tensors of inference mode are compiled for anew
        with torch.inference_mode(), self._pinned:
            values: torch.Tensor = self._reducer(self._compiled(**inputs), self._lengths(batch))
        return values

    def inputs(self, batch: Batch) -> dict[str, torch.Tensor]:
        """Always with a mask, for without one the code is another."""
        inputs = super().inputs(batch)
        return inputs | {"attention_mask": inputs.get("attention_mask", torch.ones_like(inputs["input_ids"]))}


class Packed:
    """The model's attention implementation has to be packing.attention.NAME."""

    def __init__(self, model: Any, reducer: Reducer, device: str, reads: Reads, kernel: str) -> None:
        self._model, self._reducer, self._device, self._kernel = PackedModel(model, reads), reducer, device, kernel
        table = position_table(model)
        self._padding_idx = None if table is None else table.padding_idx

    def __call__(self, batch: Batch) -> torch.Tensor:
        tokens = batch.tokens
        pack = make_pack(tokens.lengths, self._device, self._kernel)
        types = None if tokens.type_ids is None else to_device(tokens.type_ids.astype(np.int64), self._device)
        positions = to_device(row_positions(tokens.ids, tokens.lengths, self._padding_idx), self._device)
        with torch.inference_mode():
            ids = to_device(tokens.ids.astype(np.int64), self._device)
            hidden = self._model.hidden(ids, types, positions, pack)
            return self._reducer.packed(hidden, pack, lambda: self._model.head(hidden, pack, ids))

    def computed_tokens(self, lengths: Int64s) -> int:
        return int(lengths.sum())


def to_device(array: np.ndarray, device: str) -> torch.Tensor:
    tensor = torch.from_numpy(array)
    return tensor.pin_memory().to(device, non_blocking=True) if device.startswith("cuda") else tensor.to(device)
