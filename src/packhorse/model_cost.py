"""What a forward costs: FLOPs as a function of the rows' lengths."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from packhorse.data import Float64s, Int64s


@dataclass(frozen=True, slots=True)
class AttentionCost:
    """Layers that attend alike. Counted are the (query, key) pairs that a mask leaves, of a row alone, not padded."""

    flops_per_pair: float  # of all these layers together: 2 x heads x (head size of the keys + that of the values) each
    is_causal: bool = False  # a token sees itself and those before it
    reach: int | None = None  # tokens i and j see each other where |i - j| <= reach; None: at any distance

    def num_pairs(self, lengths: Int64s) -> Float64s:
        """[n] of rows of s tokens. With m = min(reach, s - 1), the distance that is reached: s (m + 1) - m (m + 1) / 2
        where attention is causal, s (2 m + 1) - m (m + 1) where not; at any distance s (s + 1) / 2 and s²."""
        s = np.asarray(lengths, np.float64)
        m = np.maximum(s - 1 if self.reach is None else np.minimum(self.reach, s - 1), 0.0)
        on_one_side = s * m - m * (m + 1) / 2
        pairs: Float64s = s + (on_one_side if self.is_causal else 2 * on_one_side)
        return pairs


@dataclass(frozen=True, slots=True)
class ModelCost:
    """FLOPs of a forward over sequence lengths s: per_token * Σs + per_row * n + those of every kind of attention."""

    per_token: float = 0.0
    per_row: float = 0.0
    attention: tuple[AttentionCost, ...] = ()

    def flops(self, lengths: Int64s) -> float:
        of_pairs = sum(kind.flops_per_pair * float(kind.num_pairs(lengths).sum()) for kind in self.attention)
        return self.per_token * float(lengths.sum()) + self.per_row * len(lengths) + of_pairs

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self) | {"attention": [asdict(kind) for kind in self.attention]}

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> ModelCost:
        """Raises KeyError, TypeError or ValueError where it is of another shape."""
        kinds = tuple(
            AttentionCost(
                float(kind["flops_per_pair"]),
                bool(kind["is_causal"]),
                None if kind["reach"] is None else int(kind["reach"]),
            )
            for kind in value["attention"]
        )
        return cls(float(value["per_token"]), float(value["per_row"]), kinds)
