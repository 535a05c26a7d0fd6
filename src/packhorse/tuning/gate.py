"""The accuracy gate: lower precision is used only after it agreed with fp32 on rows of this very job.

Compared are up to 512 rows, evenly spread over the job's lengths. Per row there is one number, the largest difference
of its scores, or the distance of its embedding (1 - cosine, see `_embedding_distances`). A precision passes when

- no value is infinite or NaN;
- 99% of the rows are within the tolerance. Not all of them: the largest of many differences grows with the number of
  rows looked at, so that a longer look would be a stricter rule;
- no row is beyond 5 times the tolerance. Rounding does not do that (int8 of a real encoder, 2,600 rows: the worst has
  twice the 99th percentile). An overflow in a few long rows does, and a percentile alone would let up to 5 rows in 512
  have any value at all;
- no sure label changed, or so few that with 95% confidence at most 1.5% of the job's rows change. A label is sure where
  fp32's margin exceeds twice the tolerance: a smaller margin can be lost within the tolerance. The bound is that of
  Clopper and Pearson: it allows 2 changes in 512 rows and none below 315, so that few rows need no rule of their own.

Together: whatever passes has changed, of the rows it was tried on, no label with a margin above 10 tolerances.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from packhorse.data import Float32s, Int64s, Reduction
from packhorse.sequences import Ragged, Values, comparable

MIN_JOB_ROWS = 2_000  # in fewer rows twice the speed does not repay 512 rows at both precisions (1,440 do)
SAMPLE_ROWS = 512
SAMPLE_TOKENS = 131_072
# Of a score between 0 and 1 (or of a regression's spread), and of a cosine. fp32: another backend's.
TOLERANCES = {
    "fp32": (0.001, 0.00001),
    "bf16": (0.02, 0.001),
    "fp16": (0.02, 0.001),
    "int8": (0.05, 0.01),
    "int4": (0.2, 0.04),  # assumed: four times int8's, and only where it was asked for by name
    "fp8": (0.05, 0.01),
}
QUANTILE = 0.99
MAX_OVER = 5.0  # times the tolerance, for every single row
CONFIDENCE = 0.95
MAX_CHANGED = 0.015  # of the job's rows
VECTORS = ("pool", "vectors", "sparse")  # kinds of values whose direction counts
BISECTIONS = 60  # halvings of an interval within 0 to 1: down to the precision of a float


class Verdict(NamedTuple):
    """What was found, in one line for the plan's notes and as figures for the report.

    Differences are of a score, shares of a regression's spread, or 1 - cosine; None where a value is no number. Labels
    are None where the task has none.
    """

    passed: bool
    finding: str
    rows: int = 0  # compared
    max_difference: float | None = None
    p99_difference: float | None = None  # 99% of the rows differ by this or less
    changed_labels: int | None = None  # of those that were sure
    changed_upper_95: float | None = None  # share of the job's rows, one-sided 95% upper bound


def stratified(lengths: Int64s, max_rows: int = SAMPLE_ROWS) -> Int64s:
    """Row numbers, evenly spread over the lengths from the shortest to the longest; rows without tokens left out.

    At most max_rows, and at most SAMPLE_TOKENS tokens (one row may exceed them alone).
    """
    rows = np.flatnonzero(lengths)
    by_length = rows[np.argsort(lengths[rows], kind="stable")]
    count = min(len(by_length), max_rows)
    while True:
        chosen = by_length[_spread_out(len(by_length), count)]
        tokens = int(lengths[chosen].sum())
        if count <= 1 or tokens <= SAMPLE_TOKENS:
            return chosen
        count = max(min(count - 1, count * SAMPLE_TOKENS // tokens), 1)


def _spread_out(num_rows: int, count: int) -> Int64s:
    """Of 0 .. num_rows - 1: both ends and evenly between; of one, the middle."""
    ends = (0, num_rows - 1) if count != 1 else (num_rows // 2, num_rows // 2)
    return np.linspace(*ends, count).astype(np.int64)


def default_tolerance(precision: str, reduction: Reduction) -> float:
    """What a precision may differ from fp32 by, where --tolerance does not say it."""
    of_score, of_cosine = TOLERANCES[precision]
    return of_cosine if reduction.kind in VECTORS else of_score


def compare(reference: Float32s, candidate: Float32s, reduction: Reduction, tolerance: float) -> Verdict:
    """[n, width] values of the same rows, fp32's and the candidate's. Rows that fp32 itself cannot do do not count. Of
    rows with several lines of values (a token each) each line counts as a row."""
    can_be_done = np.isfinite(reference).all(1)
    reference, candidate = reference[can_be_done].astype(np.float64), candidate[can_be_done].astype(np.float64)
    rows = len(reference)
    if not rows:
        return Verdict(False, "fp32 gives no row of the sample a value")
    bad = int((~np.isfinite(candidate).all(1)).sum())
    if bad:
        return Verdict(False, f"it gives values that are no numbers in {bad} of {rows} rows", rows)
    differences = _differences(reference, candidate, reduction)
    worst, p99 = float(differences.max()), float(np.quantile(differences, QUANTILE, method="higher"))
    passed = p99 <= tolerance and worst <= MAX_OVER * tolerance
    finding = (
        f"{_kind(reduction)} to fp32 {p99:.2g} or less in {QUANTILE:.0%} of {rows} rows, {worst:.2g} at most "
        f"(allowed {tolerance:.2g} and {MAX_OVER * tolerance:.2g})"
    )
    if not _has_labels(reduction):
        return Verdict(passed, finding, rows, worst, p99)
    changed = int(_changed_sure_labels(reference, candidate, reduction, tolerance).sum())
    upper = upper_bound(changed, rows)
    passed &= changed == 0 or upper <= MAX_CHANGED
    finding += (
        f"; {changed} sure label{'s' * (changed != 1)} changed, so with 95% confidence at most {upper:.2%} of all rows"
    )
    finding += f" (allowed {MAX_CHANGED:.1%})" if changed else ""
    return Verdict(passed, finding, rows, worst, p99, changed, upper)


def lines(reduction: Reduction, values: Values) -> Float32s:
    """[N, width] all values, in a form that can be compared."""
    if not isinstance(values, Ragged):
        return values
    if reduction.per == "entry":  # the row's number in front, as in a forward
        row_of = np.repeat(np.arange(values.num_rows, dtype=np.float32), values.lengths)
        return comparable(reduction, np.column_stack([row_of, values.values]))
    return comparable(reduction, values.values)


def upper_bound(changed: int, rows: int, confidence: float = CONFIDENCE) -> float:
    """One-sided upper bound of Clopper and Pearson for a share of which `changed` of `rows` were seen.

    The largest share at which seeing so few, or fewer, still has a probability of 1 - confidence.
    """
    if changed >= rows:
        return 1.0
    low, high = changed / rows, 1.0
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        if _binomial_cdf(changed, rows, middle) > 1 - confidence:
            low = middle
        else:
            high = middle
    return high


def _binomial_cdf(most: int, trials: int, share: float) -> float:
    """Probability of `most` or fewer successes; every term by its logarithm, 0 < share < 1."""
    if share >= 1.0:
        return float(most >= trials)
    successes = np.arange(1, most + 1)
    log_choose = np.concatenate([[0.0], np.cumsum(np.log((trials - successes + 1) / successes))])
    counts = np.arange(most + 1)
    return float(np.exp(log_choose + counts * math.log(share) + (trials - counts) * math.log1p(-share)).sum())


def _kind(reduction: Reduction) -> str:
    if reduction.kind in VECTORS:
        return "1 - cosine"
    is_score = _has_labels(reduction) or reduction.kind == "fill"
    return "score difference" if is_score else "difference in parts of the outputs' spread"


def _has_labels(reduction: Reduction) -> bool:
    return reduction.kind in ("classify", "tokens") and reduction.activation != "none"


def _differences(reference: np.ndarray, candidate: np.ndarray, reduction: Reduction) -> np.ndarray:
    """One number a row."""
    if reduction.kind in VECTORS:
        return _embedding_distances(reference, candidate)
    differences = np.abs(reference - candidate)
    if reduction.activation in ("none", "log1p") and reduction.kind != "fill":
        differences /= _spread(reference)
    worst: np.ndarray = differences.max(1)
    return worst


def _spread(values: np.ndarray) -> np.ndarray:
    """Standard deviation of each output; at least a hundredth of its size, where outputs hardly differ."""
    return np.maximum(np.maximum(values.std(0), 0.01 * np.abs(values).mean(0)), 1e-12)


def _embedding_distances(reference: np.ndarray, candidate: np.ndarray) -> np.ndarray:
    """|r - c|² / (2 |r| |c|): exactly 1 - cosine for vectors of one length.

    Where lengths differ it is more, for who multiplies embeddings without normalizing them sees that too. A zero vector
    is as far from any other as one at a right angle, 1, and equal to itself.
    """
    squares = np.square(reference - candidate).sum(1)
    norms = np.linalg.norm(reference, axis=1) * np.linalg.norm(candidate, axis=1)
    distances: np.ndarray = np.divide(squares, 2 * norms, out=(squares > 0).astype(np.float64), where=norms > 0)
    return distances


def _changed_sure_labels(
    reference: np.ndarray, candidate: np.ndarray, reduction: Reduction, tolerance: float
) -> np.ndarray:
    """[n] whether a row's label, or any of its labels, changed though fp32 was sure of it."""
    if reduction.activation == "sigmoid":  # each label by itself, yes against no
        changed = (reference >= 0.5) != (candidate >= 0.5)
        any_of_them: np.ndarray = (changed & (np.abs(2 * reference - 1) > 2 * tolerance)).any(1)
        return any_of_them
    if reference.shape[1] < 2:
        return np.zeros(len(reference), np.bool_)
    best_two = np.sort(reference, axis=1)[:, -2:]
    one: np.ndarray = reference.argmax(1) != candidate.argmax(1)
    return one & (best_two[:, 1] - best_two[:, 0] > 2 * tolerance)
