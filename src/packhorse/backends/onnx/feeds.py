"""A batch as the inputs that a graph has."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from packhorse.backends.torch.graph_values import place_inputs
from packhorse.data import Batch, Reduction
from packhorse.errors import ModelError
from packhorse.sequences import attended

KNOWN = ("input_ids", "attention_mask", "token_type_ids", "position_ids")
NUMPY = {"tensor(int64)": np.int64, "tensor(int32)": np.int32, "tensor(float)": np.float32, "tensor(bool)": np.bool_}


def input_types(session: Any, path: Path, places: tuple[str, ...] = ()) -> dict[str, Any]:
    """The graph's inputs and their numpy types. places: inputs that a graph of ours has beside those of a text encoder.
    Raises ModelError where one is not known."""
    types = {i.name: NUMPY.get(i.type) for i in session.get_inputs()}
    unknown = [name for name, kind in types.items() if name not in KNOWN + places or kind is None]
    if unknown or "input_ids" not in types:
        raise ModelError(
            f"{path}: its inputs are {', '.join(types)}; packhorse feeds {', '.join(KNOWN)}, of which a graph needs "
            "at least input_ids"
        )
    return types


def feeds(batch: Batch, types: dict[str, Any], pad_id: int, reduction: Reduction) -> dict[str, np.ndarray]:
    """[B, S] arrays, padded on the right, and what the reduction is told beside them; only what the graph has.
    Positions count from 0 in every row."""
    ids, mask, type_ids = batch.padded(pad_id)
    arrays = {
        "input_ids": ids,
        "attention_mask": attended(reduction, ids, mask),
        "token_type_ids": np.zeros_like(ids) if type_ids is None else type_ids,
        "position_ids": np.broadcast_to(np.arange(ids.shape[1]), ids.shape),
    }
    if not types.keys() <= arrays.keys():
        arrays |= place_inputs(reduction, batch)
    return {name: np.ascontiguousarray(arrays[name], kind) for name, kind in types.items()}
