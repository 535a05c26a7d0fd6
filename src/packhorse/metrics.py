"""Counters and timers that add, and the report made of them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from typing import Any


@dataclass
class Counters:
    """What one shard, or many, did. Adding two gives the counters of both; times are busy seconds of a lane."""

    rows: int = 0
    errors: dict[str, int] = field(default_factory=dict)
    notes: dict[str, int] = field(default_factory=dict)  # what was not as planned, and in how many shards
    truncated_rows: int = 0
    truncated_tokens: int = 0
    duplicate_rows: int = 0
    real_tokens: int = 0  # of the rows that were computed, special tokens included
    row_tokens: int = 0  # of all rows: duplicates count each time
    computed_tokens: int = 0  # padding included
    batches: int = 0
    flops: float = 0.0  # useful: real tokens only
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

    def add_batch(self, rows: int, real_tokens: int, computed_tokens: int) -> None:
        self.rows += rows
        self.real_tokens += real_tokens
        self.computed_tokens += computed_tokens

    def planned(self, rows: int, tokens: int) -> None:
        self.planned_rows += rows
        self.planned_tokens += tokens

    def snapshot(self) -> tuple[int, int, int]:
        return self.rows, self.real_tokens, self.computed_tokens

    def restore(self, before: tuple[int, int, int]) -> None:
        """Takes back what was counted for a shard that is computed again."""
        self.rows, self.real_tokens, self.computed_tokens = before

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
        unplanned = max(self.total_rows - self.done_before - self.planned_rows, 0)
        tokens = self.planned_tokens - self.real_tokens + unplanned * self.planned_tokens / self.planned_rows
        return tokens * self.elapsed_s / self.real_tokens


@dataclass
class RunReport:
    """How a run went. Times in seconds, sizes in bytes, rates per second of wall time.

    `counters` are those of all committed shards, `this_run` those of this process alone; rates and shares
    are of this process.
    """

    output: str
    status: str  # finished | already_finished
    plan: dict[str, Any]
    counters: Counters
    this_run: Counters
    wall_s: float = 0.0  # from the first row read to the last commit
    setup_s: float = 0.0  # loading, fingerprints, choosing the precision
    wait_input_s: float = 0.0
    wait_output_s: float = 0.0
    peak_bytes: int = 0
    device_peak_bytes: int | None = None
    gemm_flops_per_s: float | None = None  # best measured on this device at this precision
    shards: int = 0
    parts: list[str] = field(default_factory=list)
    sha256: str | None = None  # of a one-file output

    @property
    def rows(self) -> int:
        return self.counters.rows

    @property
    def rows_per_s(self) -> float:
        return self.this_run.rows / self.wall_s if self.wall_s else 0.0

    @property
    def tokens_per_s(self) -> float:
        return self.this_run.real_tokens / self.wall_s if self.wall_s else 0.0

    @property
    def padding_efficiency(self) -> float:
        return self.this_run.real_tokens / self.this_run.computed_tokens if self.this_run.computed_tokens else 1.0

    @property
    def device_busy_share(self) -> float:
        return self.this_run.compute_s / self.wall_s if self.wall_s else 0.0

    @property
    def flops_per_s(self) -> float:
        """Useful FLOP/s over the wall time."""
        return self.this_run.flops / self.wall_s if self.wall_s else 0.0

    @property
    def gemm_share(self) -> float | None:
        """Useful FLOP/s as a share of the best matrix product measured on this device; None if not measured."""
        return self.flops_per_s / self.gemm_flops_per_s if self.gemm_flops_per_s else None

    def to_dict(self) -> dict[str, Any]:
        """All fields and derived figures, as JSON values."""
        derived = (
            "rows",
            "rows_per_s",
            "tokens_per_s",
            "padding_efficiency",
            "device_busy_share",
            "flops_per_s",
            "gemm_share",
        )
        return asdict(self) | {name: getattr(self, name) for name in derived}
