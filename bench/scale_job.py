"""One process of a job over synthetic rows: to its end, or until it kills itself. Prints what it saw as one JSON line.

python bench/scale_job.py ROWS OUTPUT MODEL [--kill-at SHARE]
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import psutil

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.scale_rows import SyntheticLoader, SyntheticReader
from packhorse.config import EngineConfig, RunConfig
from packhorse.executors.executor import Stop
from packhorse.jobs.job import Job
from packhorse.outputs.manifest import RunFolder
from packhorse.outputs.records import Commit
from packhorse.report.reporter import Reporter

POINTS = 200  # of memory over the rows, at most
MIB = 1 << 20


class WatchedFolder(RunFolder):
    """Looks at this process after each commit, and ends it as a power cut would at a share of the rows."""

    def __init__(self, output: str, num_rows: int, kill_at: float | None) -> None:
        super().__init__(output, is_file=False)
        self._num_rows, self._kill_row = num_rows, None if kill_at is None else int(kill_at * num_rows)
        self.seen: dict[str, Any] = {"memory": []}

    def commit(self, *given: Any, **named: Any) -> Commit:
        commit = super().commit(*given, **named)
        done = commit.shard.first_row + commit.shard.num_rows
        if "first_commit_s" not in self.seen:
            self.seen |= {
                "first_commit_s": time.time() - psutil.Process().create_time(),
                "first_commit_cpu_s": time.process_time(),
            }
            self.seen["first_row"] = commit.shard.first_row
        memory = self.seen["memory"]
        if not memory or done - memory[-1][0] >= self._num_rows / POINTS or done == self._num_rows:
            memory.append([done, round(resident_bytes() / MIB, 1)])
        if self._kill_row is not None and done >= self._kill_row:
            tell(self.seen | {"killed_at_row": done, "cpu_s": time.process_time()})
            os.kill(os.getpid(), signal.SIGKILL)
        return commit


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def tell(seen: dict[str, Any]) -> None:
    print(json.dumps(seen), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", type=int)
    parser.add_argument("output")
    parser.add_argument("model")
    parser.add_argument("--kill-at", type=float, help="share of the rows")
    options = parser.parse_args()
    settings = {"model": options.model, "backend": "null"}
    config = RunConfig(**settings, input="synthetic rows", output=options.output, keep=(), progress="none")
    folder = WatchedFolder(options.output, options.rows, options.kill_at)
    loader, reader = SyntheticLoader(EngineConfig(**settings)), SyntheticReader(options.rows)
    report = Job(config, loader, reader, folder, Reporter("none"), Stop()).run()
    tell(folder.seen | {"cpu_s": time.process_time(), "peak_bytes": report.peak_bytes, "rows": report.rows,
                        "this_run_rows": report.this_run.rows, "real_tokens": report.counters.real_tokens,
                        "status": report.status, "shards": report.shards})  # fmt: skip


if __name__ == "__main__":
    main()
