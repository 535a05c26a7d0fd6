"""What the coordinator of many worker processes costs: the real one (executors/processes.py), its workers only sleep.

    python bench/scale_lanes.py [--workers 10,100,1000]

Each has a lane of its own, and a lane looks every LOOK_S whether its process is still there.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import pyarrow as pa

from packhorse.data import Position, Shard
from packhorse.executors.executor import Stop
from packhorse.executors.process import WorkerProcess
from packhorse.executors.processes import Processes
from packhorse.executors.wire import Message
from packhorse.executors.worker import Computed, Ended, Facts
from packhorse.metrics import Counters, LiveCounters
from packhorse.readers.cut import ShardRows
from packhorse.shard import Budget, Budgets

BUDGET = Budget(16_384, None)
SHARDS_PER_WORKER = 8
NOTHING = pa.table({"text": pa.array(["x"], pa.large_string())})


class SleepingWorker(WorkerProcess):
    """Says that it is done after a while."""

    def __init__(self, device: str, compute_s: float) -> None:
        super().__init__("", device, None)
        self._compute_s, self._free_s = compute_s, 0.0
        self._due: deque[tuple[float, Message]] = deque()

    def start(self) -> None:
        self.facts = Facts(2, 0)

    def send(self, kind: str, values: Any = None, table: Any = None) -> None:
        now = time.perf_counter()
        if kind == "shard":
            self._free_s = max(now, self._free_s) + self._compute_s
            counters = Counters(rows=values.shard.num_rows)
            done = Computed(values.shard, {}, counters, BUDGET)
            self._due.append((self._free_s, Message("done", done, pa.table({"label": pa.array(["x"])}))))
        elif kind in ("end", "stop"):
            self._due.append((now, Message("ended", Ended(0.0, 0.0, 0, None))))

    def receive(self, timeout_s: float) -> Message | None:
        wait_s = self._due[0][0] - time.perf_counter() if self._due else timeout_s
        time.sleep(max(min(wait_s, timeout_s), 0))
        return self._due.popleft()[1] if self._due and self._due[0][0] <= time.perf_counter() else None

    def kill(self) -> None: ...

    def close(self, deadline_s: float) -> None: ...


class SleepingWorkers(Processes):
    def __init__(self, count: int, compute_s: float) -> None:
        self._compute_s = compute_s
        super().__init__("", ["none"] * count, [None] * count, ["text"], [], lambda line: None, lambda: None)

    def new_worker(self, module: str, device: str, spec: Any) -> WorkerProcess:
        return SleepingWorker(device, self._compute_s)


def shards(count: int) -> Iterator[ShardRows]:
    for index in range(count):
        yield ShardRows(Shard(index, index, 1, Position(0, index), Position(0, index + 1)), NOTHING, {})


def lanes(num_workers: int, compute_s: float) -> dict[str, float]:
    """CPU seconds a second of the coordinator, and shards a second, over a few shards a worker."""
    pool, begin_s, begin_cpu_s = SleepingWorkers(num_workers, compute_s), time.perf_counter(), time.process_time()
    committed: list[int] = []
    pool.run(
        shards(SHARDS_PER_WORKER * num_workers), Budgets([(0, BUDGET)]),
        lambda done, table: committed.append(done.shard.index), lambda *_: None, LiveCounters(), Stop(),
    )  # fmt: skip
    wall_s, cpu_s = time.perf_counter() - begin_s, time.process_time() - begin_cpu_s
    assert committed == sorted(committed) and len(committed) == SHARDS_PER_WORKER * num_workers
    return {
        "workers": num_workers, "compute_s": compute_s, "wall_s": round(wall_s, 2), "cpu_s": round(cpu_s, 2),
        "cpu_ms_per_shard": round(1e3 * cpu_s / len(committed), 3), "cpu_share": round(cpu_s / wall_s, 3),
        "busy_share": round(SHARDS_PER_WORKER * compute_s / wall_s, 3),
    }  # fmt: skip


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", default="10,100,1000")
    parser.add_argument("--compute-s", type=float, default=2.0, help="of a shard")
    options = parser.parse_args()
    for number in options.workers.split(","):
        print(json.dumps(lanes(int(number), options.compute_s)), flush=True)
