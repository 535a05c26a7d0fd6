"""Does a contender's output match the reference? If not, its speed is worth nothing: no ratio is shown."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from packhorse.comparison.contract import Task


@dataclass(frozen=True)
class Tolerances:
    """Largest absolute difference of a probability or of a component of an embedding.

    Below fp32 an embedding is judged by its cosine to the reference instead; fp16 is judged as bf16. int8's are the
    most that the accuracy gate lets a single row differ.
    """

    fp32: float = 1e-4
    bf16: float = 0.05
    int8: float = 0.25
    min_cosine_bf16: float = 0.995
    min_cosine_int8: float = 0.95

    def of(self, precision: str) -> float:
        """The largest difference allowed in this precision."""
        return {"fp32": self.fp32, "int8": self.int8}.get(precision, self.bf16)

    def min_cosine(self, precision: str) -> float:
        """The lowest cosine allowed; in fp32 the difference decides."""
        return {"fp32": -1.0, "int8": self.min_cosine_int8}.get(precision, self.min_cosine_bf16)


@dataclass(frozen=True)
class Parity:
    """The comparison over `num_rows` rows of the reference. `reason`: why it does not match, or empty."""

    num_rows: int
    max_difference: float | None
    min_cosine: float | None
    flipped_labels: int
    reason: str

    @property
    def matches(self) -> bool:
        """Whether the output is the reference's, within tolerance."""
        return not self.reason


def compare(outputs: np.ndarray, reference: np.ndarray, task: Task, precision: str, tolerances: Tolerances) -> Parity:
    """Compare outputs [N, C] with the reference's of the same rows; a wrong shape or a NaN never matches."""
    if outputs.shape != reference.shape or not len(reference):
        reason = f"output has the shape {outputs.shape}, the reference {reference.shape}"
        return Parity(len(reference), None, None, 0, reason)
    if not np.isfinite(outputs).all():
        num_rows = int((~np.isfinite(outputs).all(axis=1)).sum())
        return Parity(len(reference), None, None, 0, f"output is not finite in {num_rows} rows")
    max_difference = float(np.abs(outputs - reference).max())
    if task == "embedding":
        return _compare_embeddings(outputs, reference, max_difference, precision, tolerances)
    return _compare_scores(outputs, reference, max_difference, tolerances.of(precision))


def _compare_embeddings(
    outputs: np.ndarray,
    reference: np.ndarray,
    max_difference: float,
    precision: str,
    tolerances: Tolerances,
) -> Parity:
    min_cosine = float(cosines(outputs, reference).min())
    reason = ""
    if precision == "fp32" and max_difference > tolerances.fp32:
        reason = f"output differs by {max_difference:.2g}"
    if not min_cosine >= tolerances.min_cosine(precision):
        reason = f"output differs by {max_difference:.2g} (cosine {min_cosine:.4f})"
    return Parity(len(reference), max_difference, min_cosine, 0, reason)


def _compare_scores(outputs: np.ndarray, reference: np.ndarray, max_difference: float, tolerance: float) -> Parity:
    is_decided = margins(reference) >= 2 * tolerance
    flipped = int((is_decided & (labels(outputs) != labels(reference))).sum())
    reason = ""
    if flipped:
        reason = f"output differs by {max_difference:.2g}: {flipped} of {len(reference)} labels"
    elif max_difference > tolerance:
        reason = f"output differs by {max_difference:.2g}"
    return Parity(len(reference), max_difference, None, flipped, reason)


def labels(scores: np.ndarray) -> np.ndarray:
    """The predicted label of each row [N]; with one column, whether its probability reaches a half."""
    return scores[:, 0] >= 0.5 if scores.shape[1] == 1 else scores.argmax(axis=1)


def margins(scores: np.ndarray) -> np.ndarray:
    """How far the best label is ahead of the second [N]."""
    if scores.shape[1] == 1:
        return np.abs(2 * scores[:, 0] - 1)
    ordered = np.sort(scores, axis=1)
    return ordered[:, -1] - ordered[:, -2]


def cosines(outputs: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Cosine similarity of each row to the reference's [N]."""
    norms = np.linalg.norm(outputs, axis=1) * np.linalg.norm(reference, axis=1)
    return (outputs * reference).sum(axis=1) / norms
