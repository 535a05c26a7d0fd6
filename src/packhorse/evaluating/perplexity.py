"""perplexity: of all texts together, exp(-sum of log-likelihoods / scored tokens), and the mean over texts."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from packhorse.data import Float64s
from packhorse.evaluating.device import DeviceValues
from packhorse.evaluating.finishing import finished
from packhorse.evaluating.measures import NOT_FINITE, Job, Measure, Tally
from packhorse.readers.cut import ShardRows


def make(job: Job) -> Measure:
    """Needs no labels."""
    return Likelihood(job)


class Likelihood:
    """A shard's log-probabilities are copied to the host once."""

    headline: tuple[str, ...] = ("perplexity", "mean_perplexity")

    def __init__(self, job: Job) -> None:
        self._stages, self._tally = job.stages, Tally()
        self._log_likelihood, self._tokens = 0.0, 0
        self._sum, self._texts = 0.0, 0

    def update(self, found: DeviceValues, rows: ShardRows) -> None:
        table, is_valid, not_finite = finished(found, self._stages)
        self._log_likelihood += float(_numbers(table["log_likelihood"])[is_valid].sum())
        self._tokens += int(_numbers(table["num_tokens"])[is_valid].sum())
        of_texts = _numbers(table["perplexity"])
        of_texts = of_texts[np.isfinite(of_texts)]
        self._sum, self._texts = self._sum + float(of_texts.sum()), self._texts + len(of_texts)
        self._tally.measured += int(is_valid.sum())
        self._tally.errors[NOT_FINITE] += not_finite

    def tally(self) -> Tally:
        return self._tally

    def result(self) -> Mapping[str, Any]:
        """perplexity of all tokens together; mean_perplexity over texts that have one: not of those without a scored
        token. Null of nothing, and beyond the largest float."""
        mean = -self._log_likelihood / self._tokens if self._tokens else math.inf
        return {
            "perplexity": math.exp(mean) if mean < math.log(np.finfo(np.float64).max) else None,
            "mean_perplexity": self._sum / self._texts if self._texts else None,
            "log_likelihood": self._log_likelihood, "tokens": self._tokens, "texts_with_perplexity": self._texts,
        }  # fmt: skip


def _numbers(column: Any) -> Float64s:
    """NaN for null."""
    values: Float64s = column.to_numpy().astype(np.float64)
    return values
