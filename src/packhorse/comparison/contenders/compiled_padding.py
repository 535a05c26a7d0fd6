"""Levers: dynamic padding, torch.compile. 32 rows a batch in input order, compiled with dynamic shapes, not frozen.

Compiling is in the set-up: trial shapes are run before the clock, so that few shapes are compiled while it runs.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from packhorse.comparison.contenders._loop import BATCH_SIZE, run_loop
from packhorse.comparison.contenders._measure import rows_in_order
from packhorse.comparison.contenders.compiled_torch import run_shapes
from packhorse.comparison.contract import ModelSpec, Options, Precision, Result, Rows, Task

TASKS: tuple[Task, ...] = ("text-classification", "embedding")
PRECISIONS: tuple[Precision, ...] = ("fp32", "bf16")
BY_DEFAULT: tuple[str, ...] = ()
IS_SLOW = False


def run(model: ModelSpec, rows: Rows, options: Options) -> Result:
    """dynamic_padding around a compiled network."""
    return run_loop(model, rows, options, lambda lengths: rows_in_order(len(lengths), BATCH_SIZE), compiled)


def compiled(model: ModelSpec, network: Any) -> Any:
    """The network compiled, for whole batches and for what is left at the end."""
    import torch

    result: Any = torch.compile(network, dynamic=True)
    longest: int = model.max_length
    shapes: list[tuple[int, int]] = [(BATCH_SIZE, 24), (BATCH_SIZE, longest), (7, 61), (1, longest)]
    run_shapes(model, network, result, [(rows, int(np.clip(tokens, 1, longest))) for rows, tokens in shapes])
    return result
