"""Counters and timers that add: what a shard, and a whole run, did."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from packhorse.timeline import Timeline


@dataclass
class Transfers:
    """Copies between the host's memory and a device's: ids in, reduced outputs back. None where both are one memory."""

    host_to_device_count: int = 0
    host_to_device_bytes: int = 0
    device_to_host_count: int = 0
    device_to_host_bytes: int = 0
    pinned_bytes: int = 0  # of both ways, those from or to pinned memory
    transfer_s: float = 0.0  # of the device's time, part of Counters.compute_s


@dataclass
class Counters:
    """What one shard, or many, did. Adding two gives the counters of both; times are busy seconds of a lane."""

    rows: int = 0
    errors: dict[str, int] = field(default_factory=dict)
    notes: dict[str, int] = field(default_factory=dict)  # what was not as planned, and in how many shards
    truncated_rows: int = 0
    truncated_tokens: int = 0
    duplicate_rows: int = 0  # all of whose sequences were computed for others
    real_tokens: int = 0  # of the rows that were computed, special tokens included
    row_tokens: int = 0  # of all rows: duplicates count each time
    computed_tokens: int = 0  # padding included
    batches: int = 0
    length_rows: dict[str, int] = field(default_factory=dict)  # all sequences, by bucket of histogram.py
    length_tokens: dict[str, int] = field(default_factory=dict)  # real_tokens by bucket
    length_computed: dict[str, int] = field(default_factory=dict)  # computed_tokens by bucket
    generated_tokens: int = 0
    near_ties: int = 0  # of generation: steps whose two best choices were too close to tell apart for sure
    flops: float = 0.0  # useful: real tokens only
    host_to_device_count: int = 0  # this one and those below: Transfers
    host_to_device_bytes: int = 0
    device_to_host_count: int = 0
    device_to_host_bytes: int = 0
    pinned_bytes: int = 0
    transfer_s: float = 0.0
    read_s: float = 0.0
    tokenize_s: float = 0.0
    compute_s: float = 0.0
    finish_s: float = 0.0
    write_s: float = 0.0

    @property
    def error_rows(self) -> int:
        return sum(self.errors.values())

    def __iadd__(self, other: Counters) -> Counters:
        for item in fields(self):
            mine, theirs = getattr(self, item.name), getattr(other, item.name)
            if isinstance(mine, dict):
                setattr(self, item.name, {k: mine.get(k, 0) + theirs.get(k, 0) for k in {**mine, **theirs}})
            else:
                setattr(self, item.name, mine + theirs)
        return self

    @property
    def transfers(self) -> Transfers:
        return Transfers(**{item.name: getattr(self, item.name) for item in fields(Transfers)})

    def transferred(self, more: Transfers) -> None:
        """Adds them."""
        for item in fields(Transfers):
            setattr(self, item.name, getattr(self, item.name) + getattr(more, item.name))

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Adds the seconds of the block to the timer of that name."""
        begin = time.perf_counter()
        try:
            yield
        finally:
            setattr(self, name, getattr(self, name) + time.perf_counter() - begin)

    def deterministic(self) -> dict[str, Any]:
        """The counters without the timers: what two runs of one plan share."""
        return {k: v for k, v in asdict(self).items() if not k.endswith("_s")}


@dataclass
class LiveCounters:
    """What the progress line shows while batches run. Each lane adds its own part."""

    rows: int = 0
    real_tokens: int = 0
    computed_tokens: int = 0
    planned_rows: int = 0  # of shards that were tokenized so far
    planned_tokens: int = 0
    done_before: int = 0  # rows that an earlier process committed
    total_rows: float | None = None  # of the whole job; an estimate where the input does not tell
    started: float = field(default_factory=time.perf_counter)
    by_rows: bool = False  # whether rows tell better than tokens how much is left: how long outputs get is not known
    timeline: Timeline = field(default_factory=Timeline)  # of rows, real tokens, computed tokens

    def add_batch(self, rows: int, real_tokens: int, computed_tokens: int) -> None:
        self.rows += rows
        self.real_tokens += real_tokens
        self.computed_tokens += computed_tokens
        self.timeline.add(*self.snapshot())

    def planned(self, rows: int, tokens: int) -> None:
        self.planned_rows += rows
        self.planned_tokens += tokens

    def snapshot(self) -> tuple[int, int, int]:
        return self.rows, self.real_tokens, self.computed_tokens

    def restore(self, before: tuple[int, int, int]) -> None:
        """Takes back what was counted for a shard that is computed again."""
        self.rows, self.real_tokens, self.computed_tokens = before
        self.timeline.drop_beyond(*before)

    @property
    def elapsed_s(self) -> float:
        return max(time.perf_counter() - self.started, 1e-9)

    @property
    def padding_efficiency(self) -> float:
        return self.real_tokens / self.computed_tokens if self.computed_tokens else 1.0

    @property
    def eta_s(self) -> float | None:
        """Seconds left, from tokens: the longest rows of a shard come first, so rows would mislead. None: unknown."""
        if self.total_rows is None or not self.real_tokens or not self.planned_rows:
            return None
        if self.by_rows:
            left = max(self.total_rows - self.done_before - self.rows, 0)
            return left * self.elapsed_s / self.rows if self.rows else None
        unplanned = max(self.total_rows - self.done_before - self.planned_rows, 0)
        tokens = self.planned_tokens - self.real_tokens + unplanned * self.planned_tokens / self.planned_rows
        return tokens * self.elapsed_s / self.real_tokens
