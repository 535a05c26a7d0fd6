"""text-ranking: correlations of the scores, what the model's folder makes of logits, with a column of numbers."""

from __future__ import annotations

import torch

from packhorse.errors import UsageError
from packhorse.evaluating.device import DeviceValues
from packhorse.evaluating.measures import Job, Measure
from packhorse.evaluating.row_values import RowValues
from packhorse.evaluating.text_classification import Regression


def make(job: Job) -> Measure:
    """Raises UsageError for a model with several outputs."""
    outputs = len(job.description.labels)
    if outputs != 1:
        raise UsageError(f"packhorse eval: ranking is measured of models with one output, and this one has {outputs}")
    logits, activation = RowValues(job.config), getattr(torch.nn, job.description.score_activation)()

    def scores(found: DeviceValues) -> torch.Tensor:
        activated: torch.Tensor = activation(logits(found))
        return activated

    return Regression(job, scores)
