"""Levers: dynamic padding, sorting, token budget. What a good engineer writes by hand in an afternoon.

So it is the contender to beat, not the tutorial.
"""

from __future__ import annotations

import numpy as np

from packhorse.comparison.contenders._loop import run_loop, sorted_by_budget
from packhorse.comparison.contract import ModelSpec, Options, Precision, Result, Rows, Task

TASKS: tuple[Task, ...] = ("text-classification", "embedding")
PRECISIONS: tuple[Precision, ...] = ("fp32", "bf16")
IS_SLOW = False

# rows x longest row of a batch. Small batches stay in the caches of a CPU; a GPU needs large ones to fill it.
MAX_BATCH_TOKENS = {"cpu": 512, "cuda": 16_384}


def run(model: ModelSpec, rows: Rows, options: Options) -> Result:
    """See _loop.py."""
    return run_loop(model, rows, options, plan)


def plan(lengths: np.ndarray) -> list[np.ndarray]:
    """The batches on this device."""
    return sorted_by_budget(lengths, budget())


def budget() -> int:
    """Tokens of a batch on this device."""
    from packhorse.comparison.contenders._torch import device

    return MAX_BATCH_TOKENS[device()]
