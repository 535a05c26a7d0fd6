"""What is measured of each task: from a shard's values on the device and its label column to the metrics' state."""

from __future__ import annotations

import importlib
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from packhorse.config import RunConfig
from packhorse.data import ModelDescription
from packhorse.shard import Stages

MEASURED = (
    "text-classification", "token-classification", "feature-extraction", "question-answering", "text-ranking",
    "perplexity",
)  # fmt: skip
UNLABELLED = ("perplexity",)
NOT_FINITE = "not_finite"  # kind of the error, as a run names it


class Job(NamedTuple):
    """What a measure is made for."""

    config: RunConfig
    description: ModelDescription
    stages: Stages
    column: str  # of the labels; empty where there are none


@dataclass(slots=True)
class Tally:
    """Rows that are measured, that have no label, and whose errors were seen while measuring, by kind."""

    measured: int = 0
    unlabelled: int = 0
    errors: Counter[str] = field(default_factory=Counter)

    @classmethod
    def of(cls, counts: Any) -> Tally:
        """From states.RowCounts: [3], one copy from the device."""
        measured, unlabelled, wrong = (int(count) for count in counts.tolist())
        return cls(measured, unlabelled, Counter({NOT_FINITE: wrong} if wrong else {}))


class Measure(Protocol):
    headline: tuple[str, ...]  # names of its main figures

    @property
    def update(self) -> Callable[..., None]: ...  # of a shard's DeviceValues, for pairs two, and its ShardRows

    def tally(self) -> Tally: ...  # reads the device, as result() does
    def result(self) -> Mapping[str, Any]: ...  # JSON values


def make_measure(task: str, job: Job) -> Measure:
    """Raises UsageError where the model, or a setting, leaves nothing to measure."""
    module = importlib.import_module(f"packhorse.evaluating.{task.replace('-', '_')}")
    made: Measure = module.make(job)
    return made
