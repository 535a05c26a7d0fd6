"""What was reached when, in a bounded number of points, however long a run takes."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

MAX_POINTS = 240
MIN_INTERVAL_S = 1.0


@dataclass
class Timeline:
    """Points of (elapsed_s, values...), at most one every `interval_s`.

    When there are 240, every other one is dropped and the interval doubles: a run of ten days keeps a point for each
    hour or two. Each value is a running total, so that no point needs the ones dropped. One thread adds.
    """

    started: float = field(default_factory=time.perf_counter)
    interval_s: float = MIN_INTERVAL_S
    points: list[tuple[float, ...]] = field(default_factory=list)

    def add(self, *totals: float, is_last: bool = False, now: float | None = None) -> None:
        """Keeps the totals as a point if one is due. is_last: keeps them in any case, in place of the newest point
        where that is nearer than half an interval. now: time.perf_counter(), for tests."""
        elapsed_s = (time.perf_counter() if now is None else now) - self.started
        before_s = self.points[-1][0] if self.points else 0.0
        if is_last and self.points and elapsed_s - before_s < self.interval_s / 2:
            self.points.pop()
        elif not is_last and elapsed_s - before_s < self.interval_s:
            return
        self.points.append((elapsed_s, *totals))
        if len(self.points) > MAX_POINTS:
            self.points = self.points[::-2][::-1]  # the newest stays
            self.interval_s *= 2

    def drop_beyond(self, *totals: float) -> None:
        """Takes back the points above these totals: a shard is computed again."""
        while self.points and any(a > b for a, b in zip(self.points[-1][1:], totals, strict=True)):
            self.points.pop()
