"""feature-extraction: one vector a row, pooled, projected and normalized as the model's folder says."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from packhorse.config import EngineConfig
from packhorse.data import Bools, Float32s, ModelDescription, Reduction
from packhorse.stages import Task
from packhorse.tasks.vectors import vectors


def make(description: ModelDescription, settings: EngineConfig) -> Task:
    return FeatureExtraction(description.pooling, settings.embedding_format)


class FeatureExtraction:
    """Column embedding: fixed_size_list of float32 or float16."""

    name = "feature-extraction"

    def __init__(self, pooling: Reduction, embedding_format: str) -> None:
        self._pooling = pooling
        self._dtype = np.dtype(embedding_format)
        self.max_value = float(np.finfo(self._dtype).max)

    def reduction(self) -> Reduction:
        return self._pooling

    def fields(self, width: int) -> list[pa.Field]:
        return [pa.field("embedding", pa.list_(pa.from_numpy_dtype(self._dtype), width))]

    def finish(self, values: Float32s, is_valid: Bools) -> list[pa.Array]:
        """values: [n, width]."""
        return [vectors(values.astype(self._dtype, copy=False), is_valid)]
