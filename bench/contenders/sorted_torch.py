"""Written by hand with care: sorted by token length, batches by token budget, dynamic padding.

Computed tokens: the same batches, counted as rows x longest. It is what a good engineer writes in an
afternoon, so it is the contender to beat, not the tutorial.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from bench.contenders._measure import Predict, measure
from bench.contract import ModelSpec, Options, Precision, Result, Rows, Task

if TYPE_CHECKING:
    import torch

TASKS: tuple[Task, ...] = ("text-classification", "embedding")
PRECISIONS: tuple[Precision, ...] = ("fp32", "bf16")
IS_SLOW = False

# rows x longest row of a batch. Small batches stay in the caches of a CPU; a GPU needs large ones to fill it.
MAX_BATCH_TOKENS = {"cpu": 512, "cuda": 16_384}


def run(model: ModelSpec, rows: Rows, options: Options) -> Result:
    """Measure the loop below."""
    return measure(load, computed_tokens, model, rows, options)


def load(model: ModelSpec, options: Options) -> Predict:
    """Tokenize everything, plan the batches, run them, put the rows back in order."""
    from bench.contenders._torch import load_model

    return predictor(model, *load_model(model, options.precision))


def predictor(model: ModelSpec, tokenizer: Any, network: Any) -> Predict:
    """The loop, around a network or whatever stands in its place."""
    import torch

    from bench.contenders._torch import outputs_of

    def forward(token_ids: list[list[int]]) -> np.ndarray:
        inputs = pad(token_ids, tokenizer.pad_token_id or 0)
        with torch.inference_mode():
            return outputs_of(model, network, {name: x.to(network.device) for name, x in inputs.items()})

    def predict(texts: list[str]) -> np.ndarray:
        encoded = tokenizer(texts, truncation=True, max_length=model.max_length, return_attention_mask=False)
        token_ids = encoded["input_ids"]
        plan = list(batches(np.array([len(ids) for ids in token_ids]), budget()))
        sorted_outputs = np.concatenate([forward([token_ids[row] for row in batch]) for batch in plan])
        outputs = np.empty_like(sorted_outputs)
        outputs[np.concatenate(plan)] = sorted_outputs
        return outputs

    return predict


def budget() -> int:
    """Tokens of a batch on this device."""
    from bench.contenders._torch import device

    return MAX_BATCH_TOKENS[device()]


def batches(lengths: np.ndarray, max_batch_tokens: int) -> Iterator[np.ndarray]:
    """Row numbers of one batch after the other, longest rows first, so that memory peaks at the start."""
    order = np.argsort(-lengths, kind="stable")
    start = 0
    while start < len(order):
        num_rows = max(1, max_batch_tokens // max(1, int(lengths[order[start]])))
        yield order[start : start + num_rows]
        start += num_rows


def pad(token_ids: list[list[int]], pad_token_id: int) -> "dict[str, torch.Tensor]":
    """Input ids and attention mask, [B, longest], from the longest row first."""
    import torch

    shape = len(token_ids), len(token_ids[0])
    input_ids = np.full(shape, pad_token_id, dtype=np.int64)
    attention_mask = np.zeros(shape, dtype=np.int64)
    for row, ids in enumerate(token_ids):
        input_ids[row, : len(ids)] = ids
        attention_mask[row, : len(ids)] = 1
    return {"input_ids": torch.from_numpy(input_ids), "attention_mask": torch.from_numpy(attention_mask)}


def computed_tokens(texts: list[str], lengths: np.ndarray) -> int:
    """Tokens of the padded batches."""
    return sum(int(lengths[batch[0]]) * len(batch) for batch in batches(lengths, budget()))
