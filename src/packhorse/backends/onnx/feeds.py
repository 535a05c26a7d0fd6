"""A batch as the inputs that a graph has."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from packhorse.data import Batch
from packhorse.errors import ModelError

KNOWN = ("input_ids", "attention_mask", "token_type_ids", "position_ids")
NUMPY = {"tensor(int64)": np.int64, "tensor(int32)": np.int32, "tensor(float)": np.float32, "tensor(bool)": np.bool_}


def input_types(session: Any, path: Path) -> dict[str, Any]:
    """The graph's inputs and their numpy types. Raises ModelError where one is not among those of a text encoder."""
    types = {i.name: NUMPY.get(i.type) for i in session.get_inputs()}
    unknown = [name for name, kind in types.items() if name not in KNOWN or kind is None]
    if unknown or "input_ids" not in types:
        raise ModelError(
            f"{path}: its inputs are {', '.join(types)}; packhorse feeds {', '.join(KNOWN)}, of which a graph needs "
            "at least input_ids"
        )
    return types


def feeds(batch: Batch, types: dict[str, Any], pad_id: int) -> dict[str, np.ndarray]:
    """[B, S] arrays, padded on the right; only what the graph has. Positions count from 0 in every row."""
    ids, mask, type_ids = batch.padded(pad_id)
    arrays = {
        "input_ids": ids,
        "attention_mask": mask,
        "token_type_ids": np.zeros_like(ids) if type_ids is None else type_ids,
        "position_ids": np.broadcast_to(np.arange(ids.shape[1]), ids.shape),
    }
    return {name: np.ascontiguousarray(arrays[name], kind) for name, kind in types.items()}
