"""The one plain torch loop to which the levers are added: tokenize all rows, plan batches, run them, restore the order.

A lever is one of: which rows run together (`plan`), what is done to the network first (`prepare`), the precision.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from packhorse.comparison.contenders._measure import Predict, measure, padded_work
from packhorse.comparison.contract import ModelSpec, Options, Result, Rows, Work

if TYPE_CHECKING:
    import torch

Plan = Callable[[np.ndarray], Sequence[np.ndarray]]  # lengths [N] -> row numbers of one batch after the other
Prepare = Callable[[ModelSpec, Any], Any]  # the network, or what stands in its place

BATCH_SIZE = 32


def run_loop(model: ModelSpec, rows: Rows, options: Options, plan: Plan, prepare: Prepare | None = None) -> Result:
    """Measure the loop. Computed tokens: the same batches, each counted as rows x longest."""

    def load(model: ModelSpec, options: Options) -> Predict:
        from packhorse.comparison.contenders._torch import load_model

        tokenizer, network = load_model(model, options.precision)
        return predictor(model, tokenizer, prepare(model, network) if prepare else network, plan)

    def count_work(texts: list[str], lengths: np.ndarray) -> Work:
        return padded_work(lengths, plan(lengths))

    return measure(load, count_work, model, rows, options)


def predictor(model: ModelSpec, tokenizer: Any, network: Any, plan: Plan) -> Predict:
    """The loop, around a network or whatever stands in its place."""
    import torch

    from packhorse.comparison.contenders._torch import outputs_of

    def forward(token_ids: list[list[int]]) -> np.ndarray:
        inputs = pad(token_ids, tokenizer.pad_token_id or 0)
        with torch.inference_mode():
            return outputs_of(model, network, {name: x.to(network.device) for name, x in inputs.items()})

    def predict(texts: list[str]) -> np.ndarray:
        encoded = tokenizer(texts, truncation=True, max_length=model.max_length, return_attention_mask=False)
        token_ids = encoded["input_ids"]
        batches = plan(np.array([len(ids) for ids in token_ids]))
        planned_outputs = np.concatenate([forward([token_ids[row] for row in batch]) for batch in batches])
        outputs = np.empty_like(planned_outputs)
        outputs[np.concatenate(batches)] = planned_outputs
        return outputs

    return predict


def pad(token_ids: list[list[int]], pad_token_id: int) -> dict[str, torch.Tensor]:
    """Input ids and attention mask, [B, longest]."""
    import torch

    shape = len(token_ids), max(map(len, token_ids))
    input_ids = np.full(shape, pad_token_id, dtype=np.int64)
    attention_mask = np.zeros(shape, dtype=np.int64)
    for row, ids in enumerate(token_ids):
        input_ids[row, : len(ids)] = ids
        attention_mask[row, : len(ids)] = 1
    return {"input_ids": torch.from_numpy(input_ids), "attention_mask": torch.from_numpy(attention_mask)}


def by_length(lengths: np.ndarray) -> np.ndarray:
    """Row numbers, longest rows first, so that memory peaks at the start."""
    return np.argsort(-lengths, kind="stable")


def sorted_in_batches(lengths: np.ndarray, batch_size: int) -> list[np.ndarray]:
    """Rows of near length together, so many a batch."""
    order = by_length(lengths)
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]


def sorted_by_budget(lengths: np.ndarray, max_batch_tokens: int) -> list[np.ndarray]:
    """Rows of near length together, so many that rows x longest stays within the budget."""
    order, batches, start = by_length(lengths), [], 0
    while start < len(order):
        num_rows = max(1, max_batch_tokens // max(1, int(lengths[order[start]])))
        batches.append(order[start : start + num_rows])
        start += num_rows
    return batches
