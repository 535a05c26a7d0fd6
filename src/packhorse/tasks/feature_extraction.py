"""feature-extraction: one vector a row, pooled, projected and normalized as the model's folder says.

How the column `embedding` holds x, a vector of d numbers, by --embedding-format:

    float32, float16   x: fixed_size_list[d]
    int8               q: fixed_size_list<int8>[d], with the column embedding_scale s (float32): x = q * s, where
                       s = max|x| / 127 and q = round(x / s), so that |x - q * s| <= (1/2 + 2^-17) * s
    ubinary            fixed_size_list<uint8>[ceil(d / 8)]: bit i is 1 where x[i] > 0, the first in the highest bit of
                       the first byte, zeros behind the last: numpy.packbits
    binary             those bytes less 128, as int8

binary and ubinary are what sentence-transformers' quantize_embeddings makes of those names, and what vector stores
take for Hamming distances. Its int8 has a range a dimension, taken from the rows that it is given together; a scale a
row needs no other row, so that neither the order of rows nor a resumed run can change one.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from packhorse.config import EngineConfig
from packhorse.data import EMBEDDING_FORMAT, Bools, Float32s, ModelDescription, Reduction
from packhorse.sequences import Results, Sequencing
from packhorse.stages import Task
from packhorse.tasks.vectors import vectors
from packhorse.tasks.windows import Windows, has_several

TYPES = {"float32": np.float32, "float16": np.float16, "int8": np.int8, "binary": np.int8, "ubinary": np.uint8}
LARGEST_INT8 = 127
SMALLEST_NORM = 1e-12  # that torch's normalize divides by


def make(description: ModelDescription, settings: EngineConfig) -> Task:
    return FeatureExtraction(description.pooling, settings)


class FeatureExtraction:
    """Column embedding, and embedding_scale with int8. Null where a row has none."""

    name = "feature-extraction"

    def __init__(self, pooling: Reduction, settings: EngineConfig) -> None:
        self._pooling = pooling
        self._format = embedding_format = settings.embedding_format
        self._windows = Windows.of(settings)
        self._dtype = np.dtype(TYPES[embedding_format])
        self.max_value = float(np.finfo(np.float16 if embedding_format == "float16" else np.float32).max)

    def reduction(self) -> Reduction:
        return self._pooling

    def fields(self, width: int) -> list[pa.Field]:
        size = -(-width // 8) if self._format.endswith("binary") else width
        kind = pa.list_(pa.from_numpy_dtype(self._dtype), size)
        if self._windows.keeps_all:
            kind = pa.list_(kind)
        told = {EMBEDDING_FORMAT: self._format, b"packhorse.embedding_width": str(width)}
        of_scale = pa.list_(pa.float32()) if self._windows.keeps_all else pa.float32()
        scale = [pa.field("embedding_scale", of_scale)] if self._format == "int8" else []
        return [pa.field("embedding", kind, metadata=told), *scale]

    def sequencing(self) -> Sequencing:
        return self._windows.sequencing()

    def finish(self, results: Results) -> list[pa.Array]:
        """Of values [sequences, width]. The vectors of windows are weighted by their tokens, as if all of a row's
        tokens had been pooled; where the model normalizes, so is the sum."""
        if self._windows.keeps_all:
            return self._windows.lists(results, lambda values: self._columns(values, np.ones(len(values), np.bool_)))
        values = self._windows.of_rows(results, by_tokens=True)
        if self._windows.is_used and "normalize" in self._pooling.post:
            several = has_several(results)  # one window's vector has length 1 already
            norms = np.linalg.norm(values[several], axis=1, keepdims=True)
            values[several] /= np.maximum(norms, SMALLEST_NORM)
        return self._columns(values, results.is_valid)

    def _columns(self, values: Float32s, is_valid: Bools) -> list[pa.Array]:
        """values: [n, width]."""
        if self._format == "int8":
            quantized, scales = to_int8(values)
            return [vectors(quantized, is_valid), pa.array(scales, pa.float32(), mask=~is_valid)]
        if self._format.endswith("binary"):
            bits = np.packbits(values > 0, axis=1)
            return [vectors(bits if self._format == "ubinary" else (bits ^ 128).view(np.int8), is_valid)]
        return [vectors(values.astype(self._dtype, copy=False), is_valid)]


def to_int8(values: Float32s) -> tuple[np.ndarray, Float32s]:
    """q [n, width] int8 and s [n] of finite values [n, width]; s is 0 for a row of zeros."""
    largest = np.abs(values).max(1, initial=0)
    scales: Float32s = (largest / np.float32(LARGEST_INT8)).astype(np.float32)
    is_short = scales.astype(np.float64) * LARGEST_INT8 < largest  # rounded down: the largest would be beyond 127
    scales[is_short] = np.nextafter(scales[is_short], np.float32(np.inf))
    divisors = np.where(scales > 0, scales, np.float32(1))
    return np.rint(values / divisors[:, None]).astype(np.int8), scales
