"""Levers: dynamic padding, rows sorted by length. 32 rows a batch."""

from __future__ import annotations

import numpy as np

from packhorse.comparison.contenders._loop import BATCH_SIZE, run_loop, sorted_in_batches
from packhorse.comparison.contract import ModelSpec, Options, Precision, Result, Rows, Task

TASKS: tuple[Task, ...] = ("text-classification", "embedding")
PRECISIONS: tuple[Precision, ...] = ("fp32", "bf16")
BY_DEFAULT: tuple[str, ...] = ()
HAS_BATCH_SIZE = True
IS_SLOW = False


def run(model: ModelSpec, rows: Rows, options: Options) -> Result:
    """See _loop.py."""

    def plan(lengths: np.ndarray) -> list[np.ndarray]:
        return sorted_in_batches(lengths, options.batch_size or BATCH_SIZE)

    return run_loop(model, rows, options, plan)
