"""What metrics keep, on the device where values are computed: counts that are added to without waiting for the device,
and read once at the end.

Built on torchmetrics' Metric, which owns state, devices and merging over processes. Its own classification metrics are
not used as they stand: on CUDA their torch.bincount asks the device for its largest value, a wait at each update.
"""

from __future__ import annotations

from typing import Any

import torch
from torchmetrics import Metric

from packhorse.evaluating.labels import FAILED, NONE

BINS = 15  # of the calibration error, as torchmetrics and Guo et al. (2017) have them


def widest(device: str) -> torch.dtype:
    """The type that sums are kept in: float32 loses rows from 2**24 on. MPS has no float64."""
    return torch.float32 if device.startswith("mps") else torch.float64


class RowCounts(Metric):
    """[3] rows that are measured, that have no label, and whose values are not finite."""

    full_state_update = False
    counts: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("counts", torch.zeros(3, dtype=torch.int64), "sum")

    def update(self, labels: torch.Tensor, is_finite: torch.Tensor) -> None:
        """[n] labels, at least 0, NONE or FAILED; and of bool."""
        is_unlabelled = (labels == NONE) & is_finite
        is_wrong = (labels != FAILED) & ~is_finite
        self.counts += torch.stack([((labels >= 0) & is_finite).sum(), is_unlabelled.sum(), is_wrong.sum()])

    def compute(self) -> torch.Tensor:
        return self.counts


class Confusion(Metric):
    """matrix [labels, predictions] of rows; and, for the calibration error, by bin of confidence how many rows there
    are, the sum of their confidences, and how many were right."""

    full_state_update = False
    matrix: torch.Tensor
    bins: torch.Tensor
    edges: torch.Tensor

    def __init__(self, num_labels: int, dtype: torch.dtype) -> None:
        """dtype: of the sum of confidences."""
        super().__init__()
        self._num_labels = num_labels
        self.register_buffer("edges", torch.linspace(0, 1, BINS + 1))
        self.add_state("matrix", torch.zeros(num_labels, num_labels, dtype=torch.int64), "sum")
        self.add_state("bins", torch.zeros(BINS + 1, 3, dtype=dtype), "sum")  # the last: confidences of 1

    def update(self, scores: torch.Tensor, labels: torch.Tensor, is_measured: torch.Tensor) -> None:
        """scores: [n, labels]; labels: [n] of int64; is_measured: [n], what else there is in such a row counts for
        nothing."""
        confidence, predicted = torch.where(is_measured[:, None], scores, 0).max(1)
        where = labels.clamp(min=0) * self._num_labels + predicted
        self.matrix.view(-1).index_add_(0, where, is_measured.to(torch.int64))
        bins = torch.bucketize(confidence, self.edges, right=True).clamp(1, BINS + 1) - 1
        ones = is_measured.to(self.bins.dtype)
        found = torch.stack([ones, ones * confidence.to(self.bins.dtype), ones * (predicted == labels)], 1)
        self.bins.index_add_(0, bins, found)

    def compute(self) -> tuple[torch.Tensor, torch.Tensor]:
        return self.matrix, self.bins


class Labelwise(Metric):
    """[labels, 4] of labels that are each true or not: true and false positives, false and true negatives; and rows of
    which all labels are right."""

    full_state_update = False
    counts: torch.Tensor
    exact: torch.Tensor

    def __init__(self, num_labels: int, threshold: float) -> None:
        super().__init__()
        self._threshold = threshold
        self.add_state("counts", torch.zeros(num_labels, 4, dtype=torch.int64), "sum")
        self.add_state("exact", torch.zeros((), dtype=torch.int64), "sum")

    def update(self, scores: torch.Tensor, labels: torch.Tensor, is_measured: torch.Tensor) -> None:
        """scores: [n, labels], labels: [n, labels] of 1 and 0 in rows that are measured, [n]."""
        predicted, true = scores >= self._threshold, labels > 0
        kinds = torch.stack([predicted & true, predicted & ~true, ~predicted & true, ~predicted & ~true], 2)
        self.counts += (kinds & is_measured[:, None, None]).sum(0)
        self.exact += ((predicted == true).all(1) & is_measured).sum()

    def compute(self) -> tuple[torch.Tensor, torch.Tensor]:
        return self.counts, self.exact


class Paired(Metric):
    """All predictions and labels of numbers, kept on the device: ranks need all of them. 16 bytes a row."""

    full_state_update = False
    predicted: list[torch.Tensor]
    labels: list[torch.Tensor]

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self._kept_as = dtype
        self.add_state("predicted", [], "cat")
        self.add_state("labels", [], "cat")

    @property
    def is_narrow(self) -> bool:
        return self._kept_as == torch.float32

    def update(self, predicted: torch.Tensor, labels: torch.Tensor, is_measured: torch.Tensor) -> None:
        """[n] each."""
        nothing = float("nan")
        self.predicted.append(torch.where(is_measured, predicted, nothing).to(self._kept_as))
        self.labels.append(torch.where(is_measured, labels, nothing).to(self._kept_as))

    def compute(self) -> tuple[torch.Tensor, torch.Tensor]:
        """NaN where a row is not measured."""
        empty = torch.zeros(0, dtype=self._kept_as)
        return (torch.cat(self.predicted) if self.predicted else empty,
                torch.cat(self.labels) if self.labels else empty)  # fmt: skip


def on(metric: Metric, device: str) -> Any:
    """The metric with its state there."""
    return metric.to(device)
