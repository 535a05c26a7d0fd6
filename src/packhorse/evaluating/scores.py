"""Figures of classification from counts, by the definitions of scikit-learn."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from packhorse.data import Float64s


def of_matrix(matrix: Float64s, names: Sequence[str]) -> dict[str, Any]:
    """[labels, predictions] counts to accuracy, F1 (macro: of labels that occur on either side), and the correlation of
    Gorodkin (2004), "Comparing two K-category assignments by a K-category correlation coefficient". Each row has one
    label and one prediction, so that the micro average of precision, recall and F1 is the accuracy. A ratio of nothing
    is 0."""
    hits, true, predicted, total = np.diag(matrix), matrix.sum(1), matrix.sum(0), matrix.sum()
    precision, recall = share(hits, predicted), share(hits, true)
    scores, occurs = share(2 * hits, true + predicted), true + predicted > 0
    covariance = hits.sum() * total - (true * predicted).sum()
    spreads = np.sqrt(total**2 - (predicted**2).sum()) * np.sqrt(total**2 - (true**2).sum())
    accuracy = float(share(hits.sum(), total))
    return {
        "accuracy": accuracy, "f1_micro": accuracy, "f1_macro": float(scores[occurs].mean()) if occurs.any() else 0.0,
        "f1_weighted": float(share((scores * true).sum(), total)),
        "matthews_correlation": float(share(covariance, spreads)),
        "labels": per_label(names, precision, recall, scores, true),
        "confusion": {"labels": list(names), "matrix": matrix.astype(int).tolist()},
    }  # fmt: skip


def of_labelwise(counts: Float64s, exact: float, rows: float, names: Sequence[str]) -> dict[str, Any]:
    """counts: [labels, 4] true and false positives, false and true negatives; accuracy: rows of which every label is
    right, exact of them all."""
    hits, wrong, missed = counts[:, 0], counts[:, 1], counts[:, 2]
    total = counts.sum(0)
    scores, support = share(2 * hits, 2 * hits + wrong + missed), hits + missed
    micro = share(2 * total[0], 2 * total[0] + total[1] + total[2])
    return {
        "accuracy": float(share(exact, rows)), "f1_micro": float(micro), "f1_macro": float(scores.mean()),
        "f1_weighted": float(share((scores * support).sum(), support.sum())),
        "labels": per_label(names, share(hits, hits + wrong), share(hits, support), scores, support),
    }  # fmt: skip


def per_label(
    names: Sequence[str], precision: Float64s, recall: Float64s, f1: Float64s, support: Float64s
) -> list[dict[str, Any]]:
    """[labels] each."""
    return [
        {"label": name, "precision": float(p), "recall": float(r), "f1": float(f), "support": int(n)}
        for name, p, r, f, n in zip(names, precision, recall, f1, support, strict=True)
    ]


def calibration(bins: Float64s) -> float:
    """[bins, 3] rows, sum of confidences, right ones -> the expected calibration error of Guo et al. (2017), "On
    calibration of modern neural networks": the mean over rows of |accuracy - confidence| of their bin."""
    return float(share(np.abs(bins[:, 2] - bins[:, 1]).sum(), bins[:, 0].sum()))


def share(part: Any, whole: Any) -> Any:
    """0 of nothing."""
    whole = np.asarray(whole, np.float64)
    return np.divide(part, whole, out=np.zeros_like(whole), where=whole > 0)
