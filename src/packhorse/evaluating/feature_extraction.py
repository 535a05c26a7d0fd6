"""feature-extraction of pairs: correlations of the two embeddings' cosine with a column of scores."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch.nn.functional import cosine_similarity

from packhorse.evaluating.correlations import of_numbers
from packhorse.evaluating.device import DeviceValues, device_of
from packhorse.evaluating.labels import numbers
from packhorse.evaluating.measures import Job, Measure, Tally
from packhorse.evaluating.row_values import RowValues
from packhorse.evaluating.states import Paired, RowCounts, on, widest
from packhorse.evaluating.text_classification import update_pairs
from packhorse.readers.cut import ShardRows


def make(job: Job) -> Measure:
    return Similarity(job)


class Similarity:
    """Of the pairs' first texts and of their second ones."""

    headline: tuple[str, ...] = ("spearman", "pearson")

    def __init__(self, job: Job) -> None:
        self._column, self._by_row = job.column, RowValues(job.config, by_tokens=True)
        device = device_of(job.stages.model)
        self._rows, self._state = on(RowCounts(), device), on(Paired(widest(device)), device)

    def update(self, first: DeviceValues, second: DeviceValues, rows: ShardRows) -> None:
        cosines = cosine_similarity(self._by_row(first), self._by_row(second))
        failed = list({**first.errors, **second.errors})
        update_pairs(self._rows, self._state, cosines, numbers(rows, self._column), failed)

    def tally(self) -> Tally:
        return Tally.of(self._rows.compute())

    def result(self) -> Mapping[str, Any]:
        cosines, labels = self._state.compute()
        return of_numbers(cosines, labels)
