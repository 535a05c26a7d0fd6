"""Lever: dynamic padding. 32 rows a batch in input order, each batch padded to its longest row."""

from __future__ import annotations

import numpy as np

from packhorse.comparison.contenders._loop import BATCH_SIZE, run_loop
from packhorse.comparison.contenders._measure import rows_in_order
from packhorse.comparison.contract import ModelSpec, Options, Precision, Result, Rows, Task

TASKS: tuple[Task, ...] = ("text-classification", "embedding")
PRECISIONS: tuple[Precision, ...] = ("fp32", "bf16", "int8")
BY_DEFAULT: tuple[str, ...] = ()
HAS_BATCH_SIZE = True
IS_SLOW = False


def run(model: ModelSpec, rows: Rows, options: Options) -> Result:
    """int8: torch's dynamic quantization of the linear layers."""

    def plan(lengths: np.ndarray) -> list[np.ndarray]:
        return rows_in_order(len(lengths), options.batch_size or BATCH_SIZE)

    return run_loop(model, rows, options, plan)
