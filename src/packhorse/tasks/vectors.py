"""Columns of vectors, as several tasks have them."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from packhorse.data import Bools


def vectors(values: np.ndarray, is_valid: Bools) -> pa.Array:
    """[n, w] floats as a fixed_size_list column, null where not valid."""
    flat = pa.array(values.reshape(-1))
    return pa.FixedSizeListArray.from_arrays(flat, values.shape[1], mask=pa.array(~is_valid))
