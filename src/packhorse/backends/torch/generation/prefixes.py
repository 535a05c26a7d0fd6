"""What prompts have in common at their beginning: a system prompt, a template."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from packhorse.data import Int32s

MIN_TOKENS = 16
MIN_SHARE = 0.5  # of the prompts


def common_prefix(prompts: Sequence[Int32s]) -> Int32s:
    """The longest beginning that at least half of the prompts go on from; empty where it has less than MIN_TOKENS.

    In sorted order, rows that share a beginning are neighbours: it is the longest one that the first and the last of
    any half have in common.
    """
    half = max(int(np.ceil(len(prompts) * MIN_SHARE)), 2)
    nothing = np.empty(0, np.int32)
    if len(prompts) < half:
        return nothing
    ordered = sorted(prompts, key=lambda prompt: prompt.astype(">i4").tobytes())
    pairs = zip(ordered, ordered[half - 1 :], strict=False)
    best = max((_shared(first, last) for first, last in pairs), key=len)
    return best if len(best) >= MIN_TOKENS else nothing


def _shared(a: Int32s, b: Int32s) -> Int32s:
    """What both go on from: at least one token of each is behind it."""
    size = min(len(a), len(b)) - 1
    differs = np.flatnonzero(a[: max(size, 0)] != b[: max(size, 0)])
    return a[: int(differs[0]) if len(differs) else max(size, 0)]


def goes_on_from(prompt: Int32s, prefix: Int32s) -> bool:
    return len(prefix) > 0 and len(prompt) > len(prefix) and bool(np.array_equal(prompt[: len(prefix)], prefix))
