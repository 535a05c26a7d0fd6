"""Who computes the shards of a job: what a job asks of it, wherever the model is."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

import pyarrow as pa

from packhorse.data import RowError, Shard
from packhorse.errors import InterruptedRunError
from packhorse.executors.lanes import LaneStoppedError
from packhorse.metrics import Counters, LiveCounters
from packhorse.readers.cut import ShardRows
from packhorse.shard import Budget, Budgets


class Done(Protocol):
    """A shard that was computed. errors: by row of the shard."""

    shard: Shard
    errors: dict[int, RowError]
    counters: Counters


Commit = Callable[[Done, pa.Table], None]
LowerBudget = Callable[[int, Budget], None]  # first shard it holds for, the budget


@dataclass
class Stop:
    """Set by a signal; the run ends after the batch that is running. has_failed: a lane did, and the one that waits for
    input is to end too."""

    event: threading.Event = field(default_factory=threading.Event)
    signum: int = 0
    has_failed: bool = False

    def set(self, signum: int) -> None:
        self.signum = signum
        self.event.set()

    def check(self) -> None:
        """For whoever waits for input. Raises InterruptedRunError where it is set, LaneStoppedError after a failure."""
        if self.has_failed:
            raise LaneStoppedError
        if self.event.is_set():
            raise InterruptedRunError(self.signum, None)


def next_shard(shards: Iterator[ShardRows]) -> ShardRows | None:
    """None at the end of the input, and where a stop ended the wait for it."""
    try:
        return next(shards, None)
    except InterruptedRunError:
        return None


@dataclass
class Outcome:
    """What a run did. Seconds of waiting are those of the forward lane, of several processes their mean; workers: of
    several processes, what each did."""

    counters: Counters = field(default_factory=Counters)
    wait_input_s: float = 0.0
    wait_output_s: float = 0.0
    workers: list[dict[str, Any]] = field(default_factory=list)


class Executor(Protocol):
    """width: of the values of a row. weight_bytes: of the loaded model."""

    @property
    def width(self) -> int: ...
    @property
    def weight_bytes(self) -> int: ...
    @property
    def peak_bytes(self) -> int: ...  # of the host's memory, all processes together
    @property
    def device_peak_bytes(self) -> int | None: ...  # of a device's; None where it is the host's

    def texts(self, rows: ShardRows) -> list[str | None]: ...  # that the model is given
    def predict(self, rows: ShardRows, budget: Budget) -> pa.Table: ...  # the columns that are added to the input's
    def run(
        self, shards: Iterator[ShardRows], budgets: Budgets, commit: Commit, lower: LowerBudget, live: LiveCounters,
        stop: Stop,
    ) -> Outcome: ...  # fmt: skip


def beside(kept: pa.Table, made: pa.Table) -> pa.Table:
    """The rows as they are written: the input's columns that are kept, then those that were made."""
    kept = kept.combine_chunks()
    made = made.combine_chunks()
    return pa.Table.from_arrays([*kept.columns, *made.columns], schema=pa.schema([*kept.schema, *made.schema]))
