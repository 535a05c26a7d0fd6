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
from packhorse.sequences import Results, Sequencing
from packhorse.stages import Task
from packhorse.tasks.vectors import vectors
from packhorse.tasks.windows import Windows, activated

MULTI_LABEL_THRESHOLD = 0.5


def make(description: ModelDescription, settings: EngineConfig) -> Task:
    return TextClassification(description.labels, description.problem_type, settings)


class TextClassification:
    """Columns label, score and, on request, scores (every label's, in id2label order)."""

    name = "text-classification"
    max_value = float(np.finfo(np.float32).max)

    def __init__(self, labels: tuple[str, ...], problem_type: str | None, settings: EngineConfig) -> None:
        self._labels = labels
        self._problem = problem_type or (
            "single_label_classification" if len(labels) > 1 else "multi_label_classification"
        )
        self._is_list = problem_type == "multi_label_classification"
        self._with_scores = settings.scores == "all"
        usual = {"regression": "none", "multi_label_classification": "sigmoid"}.get(self._problem, "softmax")
        self.activation = usual if settings.function_to_apply == "auto" else settings.function_to_apply
        self._windows = Windows.of(settings)

    def reduction(self) -> Reduction:
        activation = "none" if self._windows.is_used else self.activation  # logits are what windows share
        return Reduction("classify", len(self._labels), activation)  # type: ignore[arg-type]

    def sequencing(self) -> Sequencing:
        return self._windows.sequencing()

    def fields(self, width: int) -> list[pa.Field]:
        label = pa.list_(pa.large_string()) if self._is_list else pa.large_string()
        fields = [pa.field("label", label), pa.field("score", pa.float32())]
        if self._with_scores:
            names = {"labels": json.dumps(self._labels, ensure_ascii=False)}
            fields.append(pa.field("scores", pa.list_(pa.float32(), width), metadata=names))
        return fields

    def finish(self, results: Results) -> list[pa.Array]:
        """Of values [sequences, labels]. The score is the best label's; for regression the first output."""
        values, is_valid = self._windows.of_rows(results), results.is_valid
        if self._windows.is_used:
            values = activated(values, self.activation)
        return self._columns(values, is_valid)

    def _columns(self, values: Float32s, is_valid: Bools) -> list[pa.Array]:
        """values: [rows, labels]."""
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
