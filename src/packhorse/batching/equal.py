"""No padding: rows of one length run together, longest first. For models whose outputs change with padding."""

from __future__ import annotations

import numpy as np

from packhorse.batching import padded
from packhorse.data import BatchPlan, Int64s


def plan(lengths: Int64s, max_batch_tokens: int, batch_size: int | None) -> BatchPlan:
    """As padded.plan, and a batch also ends where the length changes."""
    order = np.argsort(-lengths, kind="stable")
    changes = np.flatnonzero(np.diff(lengths[order])) + 1
    cuts = [np.zeros(1, np.int64)]
    for begin, end in zip(np.append(0, changes), np.append(changes, len(order)), strict=True):
        cuts.append(begin + padded.plan(lengths[order[begin:end]], max_batch_tokens, batch_size).cuts[1:])
    return BatchPlan(order, np.concatenate(cuts))
