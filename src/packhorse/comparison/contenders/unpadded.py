"""Levers: dynamic padding, packing. 32 rows a batch in input order, their padding skipped inside by unpad(model).

Computed tokens: the real ones; the loop still pads, the model's body does not see it.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from packhorse.comparison.contenders._loop import BATCH_SIZE, predictor
from packhorse.comparison.contenders._measure import Predict, measure, rows_in_order
from packhorse.comparison.contract import ModelSpec, Options, Precision, Result, Rows, Task, Work

TASKS: tuple[Task, ...] = ("text-classification", "embedding")
PRECISIONS: tuple[Precision, ...] = ("fp32", "bf16")
BY_DEFAULT: tuple[str, ...] = ()
HAS_BATCH_SIZE = True
IS_SLOW = False


def run(model: ModelSpec, rows: Rows, options: Options) -> Result:
    """dynamic_padding with another network."""
    batch_size = options.batch_size or BATCH_SIZE

    def plan(lengths: np.ndarray) -> list[np.ndarray]:
        return rows_in_order(len(lengths), batch_size)

    def load(model: ModelSpec, options: Options) -> Predict:
        from packhorse.comparison.contenders._torch import load_model
        from packhorse.packing.unpad import unpad

        tokenizer, network = load_model(model, options.precision)
        unpadded: Any = unpad(network)
        return predictor(model, tokenizer, unpadded, plan)

    def count_work(texts: list[str], lengths: np.ndarray) -> Work:
        return Work(int(lengths.sum()), len(plan(lengths)))

    return measure(load, count_work, model, rows, options)
