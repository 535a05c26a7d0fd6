"""Attention to keys and values that outlive a forward: of prompts, kept for what follows them, and of running rows.

packing/attention.py calls `attend` of the cache that a pack carries; what it does not know it refuses before.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.nn import functional as F

from packhorse.data import Int64s
from packhorse.packing.attention import PackingError, attend_rows, softmax
from packhorse.packing.pack import Pack, Run

# By layer_idx: keys [k, T, d] and values [k, T, e] of T tokens, those of a prompt side by side.
Layers = Mapping[int, tuple[torch.Tensor, torch.Tensor]]


class PromptKeys:
    """Keeps the keys and values of a forward over prompts, which may go on from a prefix that all of them have."""

    def __init__(self, runs: Sequence[Run], prefix: Sequence[Layers] = ()) -> None:
        """runs: of what is computed now. prefix: what was computed of the prefix, piece by piece."""
        self._runs, self._prefix = runs, prefix
        self.layers: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self.windows: dict[int, int | None] = {}

    def attend(
        self, module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, pack: Pack, scale: float,
        window: int | None,
    ) -> torch.Tensor:  # fmt: skip
        """query [1, h, T, d], key and value [1, k, T, d] -> [1, T, h, d]."""
        layer = layer_of(module)
        if layer in self.layers:
            raise PackingError(f"layer {layer} attends twice, and each time to other keys")
        self.layers[layer], self.windows[layer] = (key[0], value[0]), window
        if not self._prefix:
            return attend_rows(query, key, value, pack, scale, True, window)
        keys = torch.cat([piece[layer][0] for piece in self._prefix], 1)
        values = torch.cat([piece[layer][1] for piece in self._prefix], 1)
        out = query.new_empty(1, query.shape[2], query.shape[1], value.shape[-1])
        for run in self._runs:
            mask = _mask_behind(pack, run.length, keys.shape[1], window)
            _attend_behind(query[0], key[0], value[0], keys, values, run, mask, scale, out[0])
        return out


def layer_of(module: Any) -> int:
    layer = getattr(module, "layer_idx", None)
    if layer is None:
        raise PackingError(f"{type(module).__name__} does not say which layer it is")
    return int(layer)


def _attend_behind(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, prefix_keys: torch.Tensor,
    prefix_values: torch.Tensor, run: Run, mask: torch.Tensor, scale: float, out: torch.Tensor,
) -> None:  # fmt: skip
    """Writes a run's part of out [T, h, d]; each of its rows looks at the prefix and at itself."""
    tokens = slice(run.start, run.start + run.rows * run.length)
    q, k, v = (x[:, tokens].unflatten(1, (run.rows, run.length)).transpose(0, 1) for x in (query, key, value))
    k = torch.cat([prefix_keys.expand(run.rows, -1, -1, -1), k], 2)
    v = torch.cat([prefix_values.expand(run.rows, -1, -1, -1), v], 2)
    attended = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale, enable_gqa=k.shape[1] != q.shape[1])
    out[tokens].unflatten(0, (run.rows, run.length)).copy_(attended.transpose(1, 2))


def _mask_behind(pack: Pack, length: int, before: int, window: int | None) -> torch.Tensor:
    """[length, before + length] True where a token may look."""
    key = (length, window, True)
    if key not in pack.masks:
        place = torch.arange(before + length, device=pack.lengths.device)
        distance = place[before:, None] - place
        pack.masks[key] = (distance >= 0) & (distance < (window or before + length))
    return pack.masks[key]


# -- one token of each running row


class Group(NamedTuple):
    """Neighbouring rows of the step whose keys stand in one tensor."""

    layers: Layers  # [slots, k, capacity, d] each; the rows are the first of the slots
    lengths: Int64s  # [n] tokens of each row, the new one among them


class StepKeys:
    """Puts one new token of each row behind those that its slot holds, and lets it look at all of them.

    On a CPU, 64 rows of 50 to 400 tokens, 12 heads of 64: rows in groups of 64 tokens' difference are 1.3 (fp32) to 1.6
    times (bf16 with 4 key heads) as fast as all rows padded to the longest, and 1.5 to 2.8 times as fast as row by row.
    """

    def __init__(self, groups: Sequence[Group], device: Any) -> None:
        self._groups: list[_OnDevice] = []
        first = 0
        for group in groups:
            self._groups.append(_OnDevice(group, first, device))
            first += len(group.lengths)

    def attend(
        self, module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, pack: Pack, scale: float,
        window: int | None,
    ) -> torch.Tensor:  # fmt: skip
        """query [1, h, n, d], key and value [1, k, n, d] of n rows -> [1, n, h, d]."""
        layer = layer_of(module)
        q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))  # [n, h, d]
        parts = [group.attend(layer, q, k, v, scale, window) for group in self._groups]
        return (parts[0] if len(parts) == 1 else torch.cat(parts)).unsqueeze(0)


class _OnDevice:
    def __init__(self, group: Group, first: int, device: Any) -> None:
        self._layers, self._lengths = group.layers, group.lengths
        self._count = len(group.lengths)
        self._rows = slice(first, first + self._count)
        self._shortest, self._longest = int(group.lengths.min()), int(group.lengths.max())
        self._slots = torch.arange(self._count, device=device)
        self._ends = torch.from_numpy(np.ascontiguousarray(group.lengths)).to(device)
        self._masks: dict[int | None, torch.Tensor | None] = {}

    def attend(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float,
        window: int | None,
    ) -> torch.Tensor:  # fmt: skip
        """query [N, h, d], key and value [N, k, d] of all rows of the step -> [n, h, d] of this group."""
        keys, values = self._layers[layer]
        keys[self._slots, :, self._ends - 1] = key[self._rows]
        values[self._slots, :, self._ends - 1] = value[self._rows]
        seen = slice(self._first(window), self._longest)
        if window not in self._masks:
            self._masks[window] = self._mask(window, query.dtype)
        q = query[self._rows].unflatten(1, (keys.shape[1], -1))  # [n, k, g, d]: the heads that share keys are one block
        attend = _matmul_attention if _matmul_wins(q) else _sdpa
        return attend(
            q, keys[: self._count, :, seen], values[: self._count, :, seen], self._masks[window], scale
        ).flatten(1, 2)

    def _first(self, window: int | None) -> int:
        """Before it no row of the group looks."""
        return 0 if window is None else max(self._shortest - window, 0)

    def _mask(self, window: int | None, dtype: torch.dtype) -> torch.Tensor | None:
        """[n, 1, 1, S] to be added to scores; None where all rows look at all S places."""
        if self._shortest == self._longest:
            return None
        place = torch.arange(self._first(window), self._longest, device=self._ends.device)
        hidden = place >= self._ends[:, None]
        if window is not None:
            hidden |= place < self._ends[:, None] - window
        bias = torch.zeros(hidden.shape, dtype=dtype, device=hidden.device).masked_fill_(hidden, float("-inf"))
        return bias[:, None, None]


def _matmul_wins(q: torch.Tensor) -> bool:
    """In half precision on a CPU, for one query at a time: 2.5 times as fast as SDPA, which is as fast in fp32, and
    where several heads share keys."""
    return q.is_cpu and q.dtype != torch.float32 and q.shape[2] == 1


def _sdpa(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None, scale: float) -> torch.Tensor:
    """[n, k, g, d]."""
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)


def _matmul_attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None, scale: float
) -> torch.Tensor:
    """[n, k, g, d]."""
    rows, heads = q.shape[:2]
    q, k, v = (x.flatten(0, 1) for x in (q, k, v))
    scores = torch.baddbmm(q.new_empty(1, 1, 1), q, k.transpose(1, 2), beta=0, alpha=scale)
    if mask is not None:
        scores.unflatten(0, (rows, heads)).add_(mask)
    return torch.bmm(softmax(scores), v).unflatten(0, (rows, heads))
