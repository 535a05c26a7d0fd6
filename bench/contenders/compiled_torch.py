"""sorted_torch with torch.compile: inductor with frozen weights, dynamic shapes.

Freezing packs the weights once for oneDNN's matrix products, which is most of the gain on a CPU. Compiling (minutes
for a large model, and it needs a C++ compiler) is in `load s`: a batch of one row, several rows, and one token less are
run before the clock, so that no shape is compiled while it runs.
"""

from typing import TYPE_CHECKING, Any

import numpy as np

from bench.contenders._measure import Predict, measure
from bench.contenders.sorted_torch import budget, computed_tokens, predictor
from bench.contract import ModelSpec, Options, Precision, Result, Rows, Task

if TYPE_CHECKING:
    import torch

TASKS: tuple[Task, ...] = ("text-classification", "embedding")
PRECISIONS: tuple[Precision, ...] = ("fp32", "bf16")
BY_DEFAULT: tuple[str, ...] = ()  # not every machine has a C++ compiler
IS_SLOW = False


def run(model: ModelSpec, rows: Rows, options: Options) -> Result:
    """Computed tokens: as sorted_torch, the batches are the same."""
    return measure(load, computed_tokens, model, rows, options)


def load(model: ModelSpec, options: Options) -> Predict:
    """sorted_torch's loop around a compiled network."""
    import torch._inductor.config

    from bench.contenders._torch import load_model, outputs_of

    torch._inductor.config.freezing = True
    tokenizer, network = load_model(model, options.precision)
    compiled: Any = torch.compile(network, dynamic=True)
    for shape in trial_shapes(model.max_length):
        inputs = inputs_of(shape, network.device)  # made outside, as the loop does: inference tensors compile anew
        with torch.inference_mode():
            outputs_of(model, compiled, inputs)
    return predictor(model, tokenizer, compiled)


def trial_shapes(max_length: int) -> list[tuple[int, int]]:
    """[rows, tokens] that stand for all: several rows first, for sizes of one are compiled by themselves."""
    longest = min(max_length, budget())
    return [(16, 24), (8, 61), (2, longest // 2), (1, longest), (1, longest - 1)]


def inputs_of(shape: tuple[int, int], device: "torch.device") -> "dict[str, torch.Tensor]":
    """Inputs as `pad` makes them, of one token over and over."""
    import torch

    ones = torch.from_numpy(np.ones(shape, np.int64)).to(device)
    return {"input_ids": ones, "attention_mask": ones.clone()}
