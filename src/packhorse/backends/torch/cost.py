"""FLOPs of a model, from its linear layers as they really run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from packhorse.data import ModelCost, ModelDescription

ROWS = 2


def measure_cost(model: Any, description: ModelDescription, ids: torch.Tensor) -> ModelCost:
    """2 FLOPs a weight and position for linear layers; attention 4 x width x layers x s², halved for causal models.

    ids: [2, S], S > 1. A forward of them tells which layers run once a token (2 x S positions) and which once a row
    (2). Embedding look-ups, norms and activations count 0, as in the usual model-FLOPs utilization (PaLM, appendix B).
    """
    per = {ids.numel(): 0.0, ROWS: 0.0}

    def count(module: Any, args: tuple[Any, ...], _output: Any) -> None:
        positions = args[0].shape[:-1].numel()
        if positions in per:
            per[positions] += 2.0 * module.weight.numel()

    with _hooked(model, count), torch.inference_mode():
        model(input_ids=ids)
    squared = 4.0 * description.attention_width * description.num_layers
    is_causal = any(getattr(module, "is_causal", False) for module in model.modules())
    return ModelCost(per[ids.numel()], per[ROWS], squared / 2 if is_causal else squared)


class _hooked:
    """Calls a hook after every linear layer inside the block."""

    def __init__(self, model: nn.Module, hook: Callable[..., None]) -> None:
        from transformers.pytorch_utils import Conv1D  # GPT-2's linear layer

        self._layers = [m for m in model.modules() if isinstance(m, nn.Linear | Conv1D)]
        self._hook = hook

    def __enter__(self) -> None:
        self._handles = [layer.register_forward_hook(self._hook) for layer in self._layers]

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()
