"""One progress line over all workers: what each told of itself, added up."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from packhorse.data import Int64s
from packhorse.executors.worker import Computed
from packhorse.metrics import Counters, LiveCounters

NUM_TOTALS = 5  # rows, real tokens, computed tokens, planned rows, planned tokens


def _none() -> Int64s:
    return np.zeros(NUM_TOTALS, np.int64)


@dataclass
class _Worker:
    before: Int64s = field(default_factory=_none)  # given back by the processes before this one
    now: Int64s = field(default_factory=_none)  # told by this process
    given_back: Int64s = field(default_factory=_none)
    counters: Counters = field(default_factory=Counters)
    shards: int = 0
    wasted_rows: int = 0  # of shards whose result another worker had given back before
    wasted_shards: int = 0
    wasted_s: float = 0.0  # of computing them


class Tally:
    """Of the workers by number. Safe from any thread."""

    def __init__(self, live: LiveCounters, num_workers: int) -> None:
        self._live, self._lock = live, threading.Lock()
        self.workers = [_Worker() for _ in range(num_workers)]

    def progress(self, number: int, totals: Sequence[int]) -> None:
        """totals: of its process so far."""
        with self._lock:
            self.workers[number].now = np.array(totals, np.int64)
            self._show()

    def given_back(self, number: int, computed: Computed) -> None:
        with self._lock:
            worker = self.workers[number]
            worker.given_back += _totals(computed)
            worker.counters += computed.counters
            worker.shards += 1

    def wasted(self, number: int, computed: Computed) -> None:
        """A shard whose result does not count: another worker's was there before."""
        with self._lock:
            worker = self.workers[number]
            worker.wasted_rows += computed.counters.rows
            worker.wasted_shards += 1
            worker.wasted_s += computed.counters.compute_s
            worker.before -= _totals(computed)
            self._show()

    def taken_back(self, number: int, computed: Computed) -> None:
        """A shard that is computed again."""
        with self._lock:
            worker = self.workers[number]
            worker.given_back -= _totals(computed)
            worker.before -= _totals(computed)
            self._show()

    def died(self, number: int) -> None:
        """What its process had not given back is computed again."""
        with self._lock:
            worker = self.workers[number]
            worker.before, worker.now = worker.given_back.copy(), _none()
            self._show()

    def end(self) -> None:
        """The last point of the timeline."""
        with self._lock:
            self._live.timeline.add(*self._live.snapshot(), is_last=True)

    def _show(self) -> None:
        before = self._live.snapshot()
        total = np.sum([worker.before + worker.now for worker in self.workers], axis=0)
        live = self._live
        live.rows, live.real_tokens, live.computed_tokens, live.planned_rows, live.planned_tokens = map(int, total)
        if live.rows < before[0]:
            live.timeline.drop_beyond(*live.snapshot())
        live.timeline.add(*live.snapshot())


def _totals(computed: Computed) -> Int64s:
    c = computed.counters
    return np.array([c.rows, c.real_tokens, c.computed_tokens, c.rows, c.real_tokens], np.int64)
