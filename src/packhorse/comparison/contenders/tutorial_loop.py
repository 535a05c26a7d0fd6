"""The loop of the tutorials: 32 rows at a time, every row padded to the model's maximum length."""

from __future__ import annotations

import numpy as np

from packhorse.comparison.contenders._measure import Predict, measure, rows_in_order
from packhorse.comparison.contract import ModelSpec, Options, Precision, Result, Rows, Task, Work

TASKS: tuple[Task, ...] = ("text-classification", "embedding")
PRECISIONS: tuple[Precision, ...] = ("fp32",)
IS_SLOW = True

BATCH_SIZE = 32


def run(model: ModelSpec, rows: Rows, options: Options) -> Result:
    """Computed tokens: rows x maximum length."""

    def count_work(texts: list[str], lengths: np.ndarray) -> Work:
        return Work(len(texts) * model.max_length, len(rows_in_order(len(texts), BATCH_SIZE)))

    return measure(load, count_work, model, rows, options)


def load(model: ModelSpec, options: Options) -> Predict:
    """The tutorial's code, line by line."""
    import torch

    from packhorse.comparison.contenders._torch import load_model, outputs_of

    tokenizer, network = load_model(model, options.precision)

    def predict(texts: list[str]) -> np.ndarray:
        outputs = []
        for start in range(0, len(texts), BATCH_SIZE):
            batch = tokenizer(
                texts[start : start + BATCH_SIZE],
                padding="max_length",
                truncation=True,
                max_length=model.max_length,
                return_tensors="pt",
            ).to(network.device)
            with torch.no_grad():
                outputs.append(outputs_of(model, network, dict(batch)))
        return np.concatenate(outputs)

    return predict
