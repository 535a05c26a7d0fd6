"""Levers: dynamic padding, sorting, token budget, torch.compile with inductor's frozen weights and dynamic shapes.

Freezing packs the weights once for oneDNN's matrix products, which is most of the gain on a CPU. Compiling (minutes
for a large model, and it needs a C++ compiler) is in the set-up: a batch of one row, several rows, and one token less
are run before the clock, so that no shape is compiled while it runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from packhorse.comparison.contenders._loop import run_loop
from packhorse.comparison.contenders.sorted_torch import budget, plan
from packhorse.comparison.contract import ModelSpec, Options, Precision, Result, Rows, Task

if TYPE_CHECKING:
    import torch

TASKS: tuple[Task, ...] = ("text-classification", "embedding")
PRECISIONS: tuple[Precision, ...] = ("fp32", "bf16")
BY_DEFAULT: tuple[str, ...] = ()  # not every machine has a C++ compiler
IS_SLOW = False


def run(model: ModelSpec, rows: Rows, options: Options) -> Result:
    """sorted_torch's loop around a compiled network."""
    return run_loop(model, rows, options, plan, compiled)


def compiled(model: ModelSpec, network: Any) -> Any:
    """The network compiled and frozen."""
    import torch._inductor.config

    torch._inductor.config.freezing = True
    result: Any = torch.compile(network, dynamic=True)
    run_shapes(model, network, result, trial_shapes(model.max_length))
    return result


def run_shapes(model: ModelSpec, network: Any, compiled: Any, shapes: Sequence[tuple[int, int]]) -> None:
    """Run batches of these shapes, so that they are compiled."""
    import torch

    from packhorse.comparison.contenders._torch import outputs_of

    for shape in shapes:
        inputs = inputs_of(shape, network.device)  # made outside, as the loop does: inference tensors compile anew
        with torch.inference_mode():
            outputs_of(model, compiled, inputs)


def trial_shapes(max_length: int) -> list[tuple[int, int]]:
    """[rows, tokens] that stand for all: several rows first, for sizes of one are compiled by themselves."""
    longest = min(max_length, budget())
    return [(16, min(24, longest)), (8, min(61, longest)), (2, max(longest // 2, 1)), (1, longest), (1, longest - 1)]


def inputs_of(shape: tuple[int, int], device: torch.device) -> dict[str, torch.Tensor]:
    """Inputs as `pad` makes them, of one token over and over."""
    import torch

    ones = torch.from_numpy(np.ones(shape, np.int64)).to(device)
    return {"input_ids": ones, "attention_mask": ones.clone()}
