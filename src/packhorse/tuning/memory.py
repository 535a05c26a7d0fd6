"""How much of the device's memory a batch takes, learned from trials: which token budgets fit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

SAFETY_SHARE = 0.8  # of the free memory: allocators keep blocks of other sizes, and trials see few shapes
NO_LIMIT = 2**31 - 1  # tokens; kernels number them with 32 bits
# Coefficients that may differ from 0, in the order in which they are preferred among equally good fits: few trials
# leave several, and the first predict the most for a larger batch. Columns: fixed, per token, per squared token.
SUPPORTS = ((1,), (0, 1), (2,), (1, 2), (0, 2), (0, 1, 2), (0,))
EQUALLY_GOOD = 1e-6  # of the largest peak: rounding of the least squares


@dataclass(frozen=True, slots=True)
class MemoryModel:
    """Peak bytes of a batch of `rows` rows, the longest of `longest` tokens:
    fixed + a * (rows * longest) + b * (rows * longest²); fixed is the weights, b is attention's scores."""

    fixed_bytes: float
    bytes_per_token: float
    bytes_per_squared_token: float

    def peak_bytes(self, rows: int, longest: int) -> float:
        per_token = self.bytes_per_token + self.bytes_per_squared_token * longest
        return self.fixed_bytes + per_token * rows * longest


def fit(samples: Sequence[tuple[int, int, int]]) -> MemoryModel:
    """Non-negative least squares over (rows, max_seqlen, peak_bytes) of trials.

    The optimum is an ordinary least squares on the coefficients that are not 0 in it, so with three of them all
    subsets are tried (Lawson and Hanson, Solving Least Squares Problems, 1974, chapter 23). Raises ValueError where
    there is no sample.
    """
    if not samples:
        raise ValueError("no trial to fit a memory model to")
    rows, longest, peaks = np.array(samples, np.float64).T
    columns = np.stack([np.ones_like(rows), rows * longest, rows * longest**2], axis=1)
    scales = np.maximum(columns.max(0), 1.0)  # they differ by 1e6 and more
    fits = [_on_support(columns / scales, peaks, support) for support in SUPPORTS]
    least = min(residual for residual, _ in fits) + EQUALLY_GOOD * float(peaks.max())
    best = next(coefficients for residual, coefficients in fits if residual <= least)
    return MemoryModel(*(best / scales).tolist())


def _on_support(columns: np.ndarray, peaks: np.ndarray, support: tuple[int, ...]) -> tuple[float, np.ndarray]:
    """Residual and [3] coefficients; infinite where one of them is negative."""
    solution = np.linalg.lstsq(columns[:, support], peaks, rcond=None)[0]
    coefficients = np.zeros(columns.shape[1])
    coefficients[list(support)] = solution
    residual = float(np.linalg.norm(columns @ coefficients - peaks))
    return (residual if (solution >= 0).all() else np.inf), coefficients


def largest_budget(model: MemoryModel, free_bytes: float, longest: int, safety_share: float = SAFETY_SHARE) -> int:
    """Tokens a batch whose peak stays within that share of free_bytes when all rows are as long as the longest.

    free_bytes: all that this process may hold, its weights included. 0 where the weights alone exceed it.
    """
    per_token = model.bytes_per_token + model.bytes_per_squared_token * longest
    left = safety_share * free_bytes - model.fixed_bytes
    if left <= 0:
        return 0
    return int(min(left / per_token, NO_LIMIT)) if per_token > 0 else NO_LIMIT


def largest_fitting(
    budgets: Sequence[int], model: MemoryModel, free_bytes: float, longest: int, try_out: Callable[[int], bool]
) -> int | None:
    """The largest of the budgets that fits: predicted by the model, then checked by one trial; a trial that says no
    leads to the next smaller one. None where even the smallest does not fit.

    try_out: whether a batch of that budget ran. Where the model says that none fits, the smallest is tried even so.
    """
    predicted = largest_budget(model, free_bytes, longest)
    descending = sorted(set(budgets), reverse=True)
    fitting = [budget for budget in descending if budget <= predicted] or descending[-1:]
    return next((budget for budget in fitting if try_out(budget)), None)
