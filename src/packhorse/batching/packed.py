"""No padding at all: a batch is one run of tokens, so that only real tokens count against the budget."""

from __future__ import annotations

import numpy as np

from packhorse.data import BatchPlan, Int64s


def plan(lengths: Int64s, max_batch_tokens: int, batch_size: int | None) -> BatchPlan:
    """Rows sorted by length, longest first (neighbours of one length share an attention product); the tokens of a
    batch stay within the budget; a row longer than the budget runs alone."""
    order = np.argsort(-lengths, kind="stable")
    ends = np.cumsum(lengths[order])
    cuts = [0]
    while cuts[-1] < len(order):
        begin = cuts[-1]
        before = int(ends[begin - 1]) if begin else 0
        end = max(int(np.searchsorted(ends, before + max_batch_tokens, side="right")), begin + 1)
        cuts.append(min(end, begin + batch_size) if batch_size else end)
    return BatchPlan(order, np.array(cuts, np.int64))
