"""text-classification: accuracy, F1, Matthews' correlation, calibration error and the confusion matrix; of several
labels a row the label-wise ones; of regression correlations and errors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

from packhorse.data import Float64s
from packhorse.errors import UsageError
from packhorse.evaluating.correlations import of_numbers
from packhorse.evaluating.device import DeviceValues, device_of, moved
from packhorse.evaluating.labels import FAILED, NONE, Labels, numbers
from packhorse.evaluating.measures import Job, Measure, Tally
from packhorse.evaluating.row_values import RowValues
from packhorse.evaluating.scores import calibration, of_labelwise, of_matrix
from packhorse.evaluating.states import Confusion, Labelwise, Paired, RowCounts, on, widest
from packhorse.readers.cut import ShardRows
from packhorse.tasks.text_classification import MULTI_LABEL_THRESHOLD


def make(job: Job) -> Measure:
    """Raises UsageError where scores are no probabilities."""
    kind = job.description.problem_type
    activation = job.stages.task.activation  # type: ignore[attr-defined]
    if kind == "regression":
        return Regression(job, RowValues(job.config, activation))
    if activation == "none":
        raise UsageError("--function-to-apply none: calibration and thresholds need probabilities; leave it out")
    if kind == "multi_label_classification":
        return MultiLabel(job, RowValues(job.config, activation))
    return SingleLabel(job, RowValues(job.config, activation))


class SingleLabel:
    """One label a row. A model with one output says yes from 0.5 on; yes is its label's name, 1 or true."""

    headline: tuple[str, ...] = ("accuracy", "f1_macro", "matthews_correlation", "calibration_error")

    def __init__(self, job: Job, by_row: RowValues) -> None:
        names, device = job.description.labels, device_of(job.stages.model)
        self._is_binary = len(names) == 1
        self._names = (f"not {names[0]}", names[0]) if self._is_binary else names
        self._labels, self._by_row = Labels(self._names, job.column), by_row
        self._rows, self._state = on(RowCounts(), device), on(Confusion(len(self._names), widest(device)), device)

    def update(self, found: DeviceValues, rows: ShardRows) -> None:
        scores = self._by_row(found)
        scores = torch.cat([1 - scores, scores], 1) if self._is_binary else scores
        codes = self._labels.codes(rows)
        codes[list(found.errors)] = FAILED
        labels, is_finite = moved(codes, scores.device), torch.isfinite(scores).all(1)
        self._rows.update(labels, is_finite)
        self._state.update(scores, labels, (labels >= 0) & is_finite)

    def tally(self) -> Tally:
        return Tally.of(self._rows.compute())

    def result(self) -> Mapping[str, Any]:
        matrix, bins = (_on_host(state) for state in self._state.compute())
        return {**of_matrix(matrix, self._names), "calibration_error": calibration(bins)}


class MultiLabel:
    """Each label by itself, yes from 0.5 on."""

    headline: tuple[str, ...] = ("accuracy", "f1_micro", "f1_macro")

    def __init__(self, job: Job, by_row: RowValues) -> None:
        self._names, device = job.description.labels, device_of(job.stages.model)
        self._labels, self._by_row = Labels(self._names, job.column), by_row
        self._rows = on(RowCounts(), device)
        self._state = on(Labelwise(len(self._names), MULTI_LABEL_THRESHOLD), device)

    def update(self, found: DeviceValues, rows: ShardRows) -> None:
        scores = self._by_row(found)
        sets = self._labels.sets(rows)
        sets[list(found.errors)] = FAILED
        labels, is_finite = moved(sets, scores.device), torch.isfinite(scores).all(1)
        self._rows.update(labels[:, 0], is_finite)
        self._state.update(scores, labels, (labels[:, 0] >= 0) & is_finite)

    def tally(self) -> Tally:
        return Tally.of(self._rows.compute())

    def result(self) -> Mapping[str, Any]:
        counts, exact = (_on_host(state) for state in self._state.compute())
        return of_labelwise(counts, float(exact), self.tally().measured, self._names)


class Regression:
    """One number a row: the model's first output."""

    headline: tuple[str, ...] = ("spearman", "pearson", "mean_squared_error")

    def __init__(self, job: Job, by_row: Callable[[DeviceValues], torch.Tensor]) -> None:
        """by_row: [rows, outputs]."""
        self._column, self._by_row, device = job.column, by_row, device_of(job.stages.model)
        self._rows, self._state = on(RowCounts(), device), on(Paired(widest(device)), device)

    def update(self, found: DeviceValues, rows: ShardRows) -> None:
        values = self._by_row(found)[:, 0]
        update_pairs(self._rows, self._state, values, numbers(rows, self._column), list(found.errors))

    def tally(self) -> Tally:
        return Tally.of(self._rows.compute())

    def result(self) -> Mapping[str, Any]:
        predicted, labels = self._state.compute()
        return of_numbers(predicted, labels, with_errors=True)


def update_pairs(counts: RowCounts, state: Paired, values: torch.Tensor, labels: Float64s, failed: list[int]) -> None:
    """values: [n] on the device. labels: [n], NaN for a row without one. failed: rows in error."""
    kinds = np.where(np.isnan(labels), NONE, 0)
    kinds[failed] = FAILED
    is_finite, of_rows = torch.isfinite(values), moved(kinds, values.device)
    given = moved(labels.astype(np.float32 if state.is_narrow else np.float64), values.device)
    counts.update(of_rows, is_finite)
    state.update(values, given, (of_rows >= 0) & is_finite)


def _on_host(state: torch.Tensor) -> Float64s:
    found: Float64s = state.cpu().numpy().astype(np.float64)
    return found
