"""FLOPs of a graph that came without its torch model, from its matrix products with constant weights."""

from __future__ import annotations

import math
from typing import Any

from packhorse.backends.torch.meta import attention_cost
from packhorse.data import ModelDescription
from packhorse.model_cost import ModelCost

ROWS, LENGTH = 3, 7  # of the shape that tells layers run once a token from those run once a row


def graph_cost(model: Any, description: ModelDescription) -> ModelCost:
    """As measured on torch models: 2 FLOPs a weight and position for linear layers; the attention of the model that
    the config describes. Zero where the graph takes no such shape."""
    shaped = model.clone()
    try:
        shaped.reshape({i: [ROWS, LENGTH] for i in shaped.inputs})
    except RuntimeError:
        return ModelCost()
    per = {ROWS * LENGTH: 0.0, ROWS: 0.0}
    for op in shaped.get_ops():
        weight = _weight(op) if op.get_type_name() == "MatMul" else None
        if weight is None or op.get_output_partial_shape(0).is_dynamic:
            continue
        positions = math.prod(list(op.get_output_shape(0))[:-1])
        if positions in per:
            per[positions] += 2.0 * math.prod(weight.get_output_shape(0))
    return ModelCost(per[ROWS * LENGTH], per[ROWS], attention_cost(description))


def _weight(op: Any) -> Any:
    """The constant that a MatMul multiplies with, behind whatever unpacks it (Convert, FakeQuantize, Multiply); None
    where both sides are computed."""
    for i in range(op.get_input_size()):
        node = op.input_value(i).get_node()
        while node.get_type_name() in ("Convert", "FakeQuantize", "Multiply", "Subtract", "Reshape", "Transpose"):
            node = node.input_value(0).get_node()
        if node.get_type_name() == "Constant":
            return node
    return None


def weight_bytes(model: Any) -> int:
    """Of the graph's constants, as they lie in its .bin file."""
    return sum(int(op.get_byte_size()) for op in model.get_ops() if op.get_type_name() == "Constant")
