"""Batches by token budget over rows sorted by length, longest first, so that memory peaks at the start."""

from __future__ import annotations

import numpy as np

from packhorse.data import BatchPlan, Int64s


def plan(lengths: Int64s, max_batch_tokens: int, batch_size: int | None) -> BatchPlan:
    """Rows times longest row of a batch stay within the budget; a row longer than the budget runs alone.

    lengths: [n] tokens a row, each at least 1. batch_size: most rows a batch, None for no ceiling.
    """
    order = np.argsort(-lengths, kind="stable")
    cuts = [0]
    while cuts[-1] < len(order):
        rows = max(max_batch_tokens // int(lengths[order[cuts[-1]]]), 1)
        cuts.append(min(cuts[-1] + min(rows, batch_size or rows), len(order)))
    return BatchPlan(order, np.array(cuts, np.int64))
