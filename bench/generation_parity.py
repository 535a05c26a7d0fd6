"""Outputs of a contender, and how they compare with those of generate() one prompt at a time."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from packhorse.generation import NEAR_TIE


class Outputs(NamedTuple):
    """ids: an array for each prompt. gaps: likewise, of the reference: the best score minus the second best where each
    of its tokens was chosen, behind all logits processors."""

    ids: list[np.ndarray]
    gaps: list[np.ndarray] | None

    def against(self, other: Outputs, rows: Sequence[int]) -> dict[str, Any]:
        """How many of these outputs are those that `other` has at `rows`; of each that is not, where it parts, and
        whether the reference itself could hardly tell the two best tokens apart there."""
        differing = []
        for row, mine, gap, theirs in zip(rows, self.ids, self.gaps or [], (other.ids[r] for r in rows), strict=True):
            if not np.array_equal(mine, theirs):
                step = first_difference(mine, theirs)
                value = float(gap[step]) if step < len(gap) else None
                is_near = value is not None and value < NEAR_TIE
                differing.append({"prompt": row, "step": step, "gap": value, "is_near_tie": is_near})
        return {"prompts": len(rows), "identical": len(rows) - len(differing), "differing": differing}


def first_difference(a: np.ndarray, b: np.ndarray) -> int:
    """The first place where they differ; the length of the shorter one where the other goes on from it."""
    shared = min(len(a), len(b))
    places = np.flatnonzero(a[:shared] != b[:shared])
    return int(places[0]) if len(places) else shared


def read_outputs(file: Path) -> Outputs:
    """What a contender left."""
    with np.load(file) as found:
        ends = np.cumsum(found["sizes"])[:-1]
        return Outputs(np.split(found["ids"], ends), np.split(found["gaps"], ends) if len(found["gaps"]) else None)


def spread(num_rows: int, count: int) -> list[int]:
    """`count` row numbers at even steps, all where there are no more; the prompts are in random order already."""
    count = min(count, num_rows)
    return [row * num_rows // count for row in range(count)]
