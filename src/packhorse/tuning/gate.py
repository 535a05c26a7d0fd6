"""The accuracy gate: lower precision is used only after it agreed with fp32 on rows of this very job."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from packhorse.data import Float32s, Int64s, Reduction

SCORE_TOLERANCE = 0.02  # of a score between 0 and 1, or of a regression's own spread
MIN_COSINE = 0.999
MIN_JOB_ROWS = 1_000  # fewer rows do not repay loading the model twice
SAMPLE_ROWS = 64
SAMPLE_TOKENS = 4_096  # 4 s of BERT-base in fp32 on 2 cores


class Verdict(NamedTuple):
    passed: bool
    finding: str  # what was measured, for the plan's notes


def stratified(lengths: Int64s) -> Int64s:
    """Rows evenly spread over the lengths, at most SAMPLE_ROWS rows and about SAMPLE_TOKENS tokens."""
    candidates = np.flatnonzero(lengths)
    by_length = candidates[np.argsort(lengths[candidates], kind="stable")]
    fits = int(SAMPLE_TOKENS // max(lengths[candidates].mean(), 1)) if len(candidates) else 0
    count = min(len(by_length), SAMPLE_ROWS, max(fits, 8))
    return by_length[np.linspace(0, len(by_length) - 1, count).astype(np.int64)] if count else by_length


def default_tolerance(precision: str, reduction: Reduction) -> float:
    return 1 - MIN_COSINE if reduction.kind == "pool" else SCORE_TOLERANCE


def compare(reference: Float32s, candidate: Float32s, reduction: Reduction, tolerance: float) -> Verdict:
    """[n, width] values of the same rows, fp32 and the candidate's."""
    if not np.isfinite(candidate).all():
        return Verdict(False, "it gives values that are no numbers")
    if reduction.kind == "pool":
        norms = np.linalg.norm(reference, axis=1) * np.linalg.norm(candidate, axis=1)
        worst = float(((reference * candidate).sum(1) / np.maximum(norms, 1e-30)).min())
        return Verdict(
            worst >= 1 - tolerance,
            f"lowest cosine to fp32 {worst:.5f} on {len(reference)} rows (needed {1 - tolerance:g})",
        )
    tolerance *= max(float(reference.std()), 1e-3) if reduction.activation == "none" else 1.0
    worst = float(np.abs(reference - candidate).max())
    flips = _changed_labels(reference, candidate, reduction, tolerance)
    finding = (
        f"largest score difference to fp32 {worst:.2g}, {flips} labels changed "
        f"on {len(reference)} rows (allowed {tolerance:.2g} and 0)"
    )
    return Verdict(worst <= tolerance and flips == 0, finding)


def _changed_labels(reference: Float32s, candidate: Float32s, reduction: Reduction, tolerance: float) -> int:
    """Rows whose label changed though fp32's own margin exceeds twice the tolerance."""
    if reduction.activation == "none" or reference.shape[1] < 2:
        return 0
    if reduction.activation == "sigmoid":
        sure = np.abs(reference - 0.5) > 2 * tolerance
        return int((sure & ((reference >= 0.5) != (candidate >= 0.5))).any(1).sum())
    best, second = np.sort(reference, axis=1)[:, -1], np.sort(reference, axis=1)[:, -2]
    changed = reference.argmax(1) != candidate.argmax(1)
    return int((changed & (best - second > 2 * tolerance)).sum())
