"""Correlations of two lists of numbers, where they lie."""

from __future__ import annotations

from typing import Any

import torch


def of_numbers(predicted: torch.Tensor, labels: torch.Tensor, with_errors: bool = False) -> dict[str, Any]:
    """[n] each; where one is NaN the row does not count. Spearman's is Pearson's of the ranks, ties by their mean. A
    correlation of fewer than two rows, or of a list that is constant, is null."""
    counts = ~(torch.isnan(predicted) | torch.isnan(labels))
    ours, theirs = predicted[counts], labels[counts]
    if ours.device.type == "mps":
        ours, theirs = ours.cpu(), theirs.cpu()
    ours, theirs = ours.double(), theirs.double()
    result = {"spearman": pearson(ranks(ours), ranks(theirs)), "pearson": pearson(ours, theirs)}
    if not with_errors:
        return result
    errors = (ours - theirs).square().mean(), (ours - theirs).abs().mean()
    squared, absolute = (float(error) if len(ours) else None for error in errors)
    return {**result, "mean_squared_error": squared, "mean_absolute_error": absolute}


def pearson(a: torch.Tensor, b: torch.Tensor) -> float | None:
    """[n] of float64 each."""
    if len(a) < 2 or bool(a.min() == a.max()) or bool(b.min() == b.max()):
        return None
    a, b = a - a.mean(), b - b.mean()
    return float((a / a.norm() * (b / b.norm())).sum().clamp(-1, 1))


def ranks(values: torch.Tensor) -> torch.Tensor:
    """[n] of float64, from 1 on; of equal values the mean of theirs."""
    _, which, counts = torch.unique(values, return_inverse=True, return_counts=True)
    last = counts.cumsum(0).double()
    return (last - (counts.double() - 1) / 2)[which]
