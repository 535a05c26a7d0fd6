"""text-ranking: how well a document answers a query, by a cross-encoder that reads both at once.

Scores are those of sentence-transformers' CrossEncoder.predict: the model's logits through the activation that its
folder names. The backend leaves the logits, and the activation is computed here: a lower precision is so judged by what
ranks documents, which a sigmoid flattens for those that matter.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable

import numpy as np
import pyarrow as pa

from packhorse.config import EngineConfig
from packhorse.data import Float32s, ModelDescription, Reduction
from packhorse.sequences import Results, Sequencing
from packhorse.stages import Task
from packhorse.tasks.vectors import vectors
from packhorse.tasks.windows import Windows, sigmoid


def make(description: ModelDescription, settings: EngineConfig) -> Task:
    return TextRanking(description.labels, description.score_activation, settings)


class TextRanking:
    """Column score; of a model with several outputs scores, a number for each."""

    name = "text-ranking"
    max_value = float(np.finfo(np.float32).max)

    def __init__(self, labels: tuple[str, ...], activation: str, settings: EngineConfig) -> None:
        """activation: a name of models/sentence_transformers.ACTIVATIONS."""
        self._labels, self._activation = labels, activation
        self._windows = Windows.of(settings)

    def reduction(self) -> Reduction:
        return Reduction("classify", len(self._labels), "none")

    def sequencing(self) -> Sequencing:
        return self._windows.sequencing()

    def fields(self, width: int) -> list[pa.Field]:
        if len(self._labels) == 1:
            return [pa.field("score", pa.float32())]
        names = {"labels": json.dumps(self._labels, ensure_ascii=False)}
        return [pa.field("scores", pa.list_(pa.float32(), len(self._labels)), metadata=names)]

    def finish(self, results: Results) -> list[pa.Array]:
        """Of values [pairs, labels]. The activation comes after the windows of a document have become one."""
        values = activated(self._windows.of_rows(results), self._activation)
        if len(self._labels) == 1:
            return [pa.array(values[:, 0], pa.float32(), mask=~results.is_valid)]
        return [vectors(values, results.is_valid)]


def activated(logits: Float32s, name: str) -> Float32s:
    """[n, labels] torch.nn's module of that name on logits."""
    functions: dict[str, Callable[[Float32s], Float32s]] = {
        "Identity": lambda x: x, "Tanh": np.tanh, "ReLU": lambda x: np.maximum(x, 0), "GELU": _gelu,
        "Sigmoid": sigmoid, "SiLU": lambda x: x * sigmoid(x),
    }  # fmt: skip
    return functions[name](logits)


def _gelu(x: Float32s) -> Float32s:
    """x/2 * (1 + erf(x/√2)): Hendrycks and Gimpel, 2016."""
    erf = np.frompyfunc(math.erf, 1, 1)(x / math.sqrt(2)).astype(np.float32)
    return (x / 2 * (1 + erf)).astype(np.float32)
