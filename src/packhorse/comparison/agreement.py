"""How far two models agree on the same rows: labels and scores, or which rows are near each other."""

from __future__ import annotations

import numpy as np

from packhorse.comparison.contract import SEED, Frozen, ModelSpec
from packhorse.comparison.parity import cosines, labels

PAIR_ROWS = 256  # rows whose pairwise similarities are compared: 32,640 pairs


class Agreement(Frozen):
    """Of a model's outputs with the first model's, over `num_rows` rows. What does not apply is None.

    `label_agreement`: share of rows with the same label (the same set, for multi-label models). Score differences are
    of the same label's score. `rank_correlation`: Spearman's, of the cosine similarities of `num_pairs` pairs of rows:
    two models' spaces differ, but may put the same rows near each other. `mean_cosine`: of a row's two embeddings,
    which means something only where one model was made from the other; None where their dimensions differ.
    """

    num_rows: int
    label_agreement: float | None = None
    mean_score_difference: float | None = None
    max_score_difference: float | None = None
    rank_correlation: float | None = None
    num_pairs: int | None = None
    mean_cosine: float | None = None
    reason: str = ""


def agreement(first: np.ndarray, other: np.ndarray, first_model: ModelSpec, other_model: ModelSpec) -> Agreement:
    """Of outputs [N, C] and [N, D] of two models for one task."""
    if first_model.task == "embedding":
        return _of_embeddings(first, other)
    if set(first_model.labels) != set(other_model.labels):
        reason = f"labels {', '.join(other_model.labels)} are not {', '.join(first_model.labels)}"
        return Agreement(num_rows=len(first), reason=reason)
    columns = [other_model.labels.index(label) for label in first_model.labels]
    return _of_scores(first, other[:, columns], first_model.problem_type)


def _of_scores(first: np.ndarray, other: np.ndarray, problem_type: str | None) -> Agreement:
    differences = np.abs(first - other)
    if problem_type == "regression":
        share = None
    elif problem_type == "multi_label_classification":
        share = float(((first >= 0.5) == (other >= 0.5)).all(axis=1).mean())
    else:
        share = float((labels(first) == labels(other)).mean())
    return Agreement(
        num_rows=len(first),
        label_agreement=share,
        mean_score_difference=float(differences.mean()),
        max_score_difference=float(differences.max()),
    )


def _of_embeddings(first: np.ndarray, other: np.ndarray) -> Agreement:
    rows = np.arange(len(first))
    if len(rows) > PAIR_ROWS:
        rows = np.sort(np.random.default_rng(SEED).choice(rows, PAIR_ROWS, replace=False))
    correlation = spearman(pair_similarities(first[rows]), pair_similarities(other[rows]))
    same_width = first.shape[1] == other.shape[1]
    return Agreement(
        num_rows=len(first),
        rank_correlation=correlation,
        num_pairs=len(rows) * (len(rows) - 1) // 2,
        mean_cosine=float(cosines(first, other).mean()) if same_width else None,
        reason="" if correlation is not None else "too few rows, or all alike, for a rank correlation",
    )


def pair_similarities(embeddings: np.ndarray) -> np.ndarray:
    """Cosine similarity of every two rows, float64 [N * (N - 1) / 2]."""
    wide = embeddings.astype(np.float64)
    unit = wide / np.linalg.norm(wide, axis=1, keepdims=True)
    return (unit @ unit.T)[np.triu_indices(len(unit), k=1)]


def spearman(first: np.ndarray, second: np.ndarray) -> float | None:
    """Rank correlation, ties sharing their mean rank: Pearson's of the ranks. None where one side does not vary."""
    if len(first) < 2:
        return None
    a, b = (ranks - ranks.mean() for ranks in (mean_ranks(first), mean_ranks(second)))
    spread = np.sqrt((a @ a) * (b @ b))
    return float(a @ b / spread) if spread else None


def mean_ranks(values: np.ndarray) -> np.ndarray:
    """Ranks from 1, float64 [N]; equal values get the mean of theirs."""
    _, group, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[group]
