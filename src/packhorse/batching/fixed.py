"""The honest baseline: a fixed number of rows in input order, each batch padded to its longest row."""

from __future__ import annotations

import numpy as np

from packhorse.data import BatchPlan, Int64s

DEFAULT_BATCH_SIZE = 32


def plan(lengths: Int64s, max_batch_tokens: int, batch_size: int | None) -> BatchPlan:
    """batch_size rows a batch, whatever their lengths; the token budget is not looked at."""
    num_rows = len(lengths)
    size = batch_size or DEFAULT_BATCH_SIZE
    cuts = np.append(np.arange(0, num_rows, size), num_rows) if num_rows else np.zeros(1, np.int64)
    return BatchPlan(np.arange(num_rows), cuts.astype(np.int64))
