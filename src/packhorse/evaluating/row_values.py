"""A shard's values by row, on the device: of the windows of a long text one vector, as tasks/windows.py makes it."""

from __future__ import annotations

import numpy as np
import torch

from packhorse.config import RunConfig
from packhorse.data import Int64s
from packhorse.errors import UsageError
from packhorse.evaluating.device import DeviceValues, moved
from packhorse.tasks.windows import Windows


class RowValues:
    """Called with a shard's values of one line a sequence; gives [rows, width] float32. Rows without a sequence have
    zeros."""

    def __init__(self, config: RunConfig, activation: str = "none", by_tokens: bool = False) -> None:
        """activation: of windows that became one, softmax or sigmoid; that of single sequences was the backend's.
        by_tokens: the mean is weighted by the tokens of windows. Raises UsageError for --combine all."""
        self._windows = Windows.of(config)
        if self._windows.keeps_all:
            raise UsageError("--combine all: an evaluation needs one result a row; give mean, max or first")
        self._activation, self._by_tokens = activation, by_tokens

    def __call__(self, found: DeviceValues) -> torch.Tensor:
        num_rows, lines = len(found.texts.texts), np.diff(found.offsets)
        row_of = found.tokenized.row_of
        values = found.values.float()
        if row_of is None and len(values) == num_rows:
            return values
        row = np.repeat(np.arange(num_rows) if row_of is None else row_of, lines)
        if not self._windows.is_used:
            return values.new_zeros(num_rows, values.shape[1]).index_copy_(0, moved(row, values.device), values)
        return self._activated(self._combined(values, row, num_rows, found.tokenized.tokens.lengths[lines > 0]))

    def _combined(self, values: torch.Tensor, row: Int64s, num_rows: int, lengths: Int64s) -> torch.Tensor:
        """values: [windows, width]; row, lengths: [windows] the row of each, ascending, and its tokens."""
        rows, firsts = np.unique(row, return_index=True)
        made = values.new_zeros(num_rows, values.shape[1])
        where = moved(row, values.device)
        if self._windows.combine == "first":
            return made.index_copy_(0, moved(rows, values.device), values[moved(firsts, values.device)])
        if self._windows.combine == "max":
            places = where[:, None].expand_as(values)
            return made.scatter_reduce_(0, places, values, "amax", include_self=False)
        weights = (lengths if self._by_tokens else np.ones(len(row))).astype(np.float32)
        totals = np.maximum(np.bincount(row, weights, num_rows), 1).astype(np.float32)
        made.index_add_(0, where, values * moved(weights, values.device)[:, None])
        return made / moved(totals, values.device)[:, None]

    def _activated(self, values: torch.Tensor) -> torch.Tensor:
        if self._activation == "softmax":
            return values.softmax(1)
        return values.sigmoid() if self._activation == "sigmoid" else values
