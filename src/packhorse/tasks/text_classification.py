"""text-classification: the best label and its score; single-label, multi-label or regression as the model says.

The choice of activation is that of transformers' pipeline: problem_type decides; without one, a single output is
a sigmoid and several are a softmax.
"""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa

from packhorse.config import EngineConfig
from packhorse.data import Bools, Float32s, ModelDescription, Reduction
from packhorse.stages import Task
from packhorse.tasks.vectors import vectors

MULTI_LABEL_THRESHOLD = 0.5


def make(description: ModelDescription, settings: EngineConfig) -> Task:
    return TextClassification(description.labels, description.problem_type, settings.scores == "all")


class TextClassification:
    """Columns label, score and, on request, scores (every label's, in id2label order)."""

    name = "text-classification"
    max_value = float(np.finfo(np.float32).max)

    def __init__(self, labels: tuple[str, ...], problem_type: str | None, with_scores: bool) -> None:
        self._labels = labels
        self._problem = problem_type or (
            "single_label_classification" if len(labels) > 1 else "multi_label_classification"
        )
        self._is_list = problem_type == "multi_label_classification"
        self._with_scores = with_scores

    def reduction(self) -> Reduction:
        activations = {"regression": "none", "multi_label_classification": "sigmoid"}
        return Reduction("classify", len(self._labels), activations.get(self._problem, "softmax"))  # type: ignore[arg-type]

    def fields(self, width: int) -> list[pa.Field]:
        label = pa.list_(pa.large_string()) if self._is_list else pa.large_string()
        fields = [pa.field("label", label), pa.field("score", pa.float32())]
        if self._with_scores:
            names = {"labels": json.dumps(self._labels, ensure_ascii=False)}
            fields.append(pa.field("scores", pa.list_(pa.float32(), width), metadata=names))
        return fields

    def finish(self, values: Float32s, is_valid: Bools) -> list[pa.Array]:
        """values: [n, labels]. The score is the best label's; for regression the first output."""
        best = values.argmax(1) if self._problem != "regression" else np.zeros(len(values), np.int64)
        score = pa.array(values[np.arange(len(values)), best], pa.float32(), mask=~is_valid)
        columns = [self._label(values, best, is_valid), score]
        if self._with_scores:
            columns.append(vectors(values, is_valid))
        return columns

    def _label(self, values: Float32s, best: np.ndarray, is_valid: Bools) -> pa.Array:
        names = pa.array(self._labels, pa.large_string())
        if self._problem == "regression":
            return pa.nulls(len(values), pa.large_string())
        if not self._is_list:
            return names.take(pa.array(best, pa.int64(), mask=~is_valid))
        chosen = (values >= MULTI_LABEL_THRESHOLD) & is_valid[:, None]
        offsets = np.concatenate([[0], np.cumsum(chosen.sum(1))]).astype(np.int32)
        return pa.ListArray.from_arrays(
            pa.array(offsets), names.take(pa.array(np.nonzero(chosen)[1])), mask=pa.array(~is_valid)
        )
