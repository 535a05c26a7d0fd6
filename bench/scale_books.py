"""What a run folder of so many shards costs whoever goes on with it: records read, parts looked at, the report."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.scale_figures import counters_of
from packhorse.data import Position, Shard
from packhorse.metrics import Counters
from packhorse.outputs.manifest import RunFolder
from packhorse.outputs.records import Commit

SHARD_ROWS = 65_536
PART_BYTES = 1
MIB = 1 << 20


def books(num_shards: int) -> dict[str, Any]:
    """Seconds of processor time, in a process of its own, so that its memory is that of the records alone."""
    with tempfile.TemporaryDirectory(prefix="packhorse-books-") as root:
        _write(Path(root) / "out", num_shards)
        done = subprocess.run(
            [sys.executable, __file__, f"{root}/out"], check=True, capture_output=True, text=True, env=os.environ
        )
        found: dict[str, Any] = json.loads(done.stdout)
        return {"shards": num_shards, "rows": num_shards * SHARD_ROWS} | found


def _write(output: Path, num_shards: int) -> None:
    """Records as a run leaves them, without its waiting for the disk; each part is a byte."""
    folder = RunFolder(str(output), is_file=False)
    folder.write_manifest({"plan": {}, "budgets": [[0, 16_384, None]], "finished": False})
    (output / "_packhorse/shards").mkdir()
    for index in range(num_shards):
        first = index * SHARD_ROWS
        shard = Shard(index, first, SHARD_ROWS, Position(0, first), Position(0, first + SHARD_ROWS))
        counters = counters_of(shard).deterministic()
        commit = Commit(shard, f"part-{index:06d}.parquet", PART_BYTES, f"{index:064x}", counters)
        (output / f"_packhorse/shards/{index:06d}.json").write_bytes(commit.to_json())
        (output / commit.part).write_bytes(b"x" * PART_BYTES)


def look(output: str) -> dict[str, Any]:
    """What resuming and finishing do with the bookkeeping, step by step."""
    folder = RunFolder(output, is_file=False)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found: dict[str, Any] = {}

    def timed(name: str, work: Callable[[], Any]) -> Any:
        begin = time.process_time()
        made = work()
        found[name] = round(time.process_time() - begin, 3)
        return made

    timed("check_is_ours_s", lambda: folder.check_is_ours(overwrite=False))
    commits = timed("read_records_s", folder.commits)
    timed("check_parts_s", lambda: folder.check_parts(commits))
    timed("add_counters_s", lambda: sum_of(commits))
    timed("finish_s", lambda: folder.finish(SHARD_ROWS * len(commits), commits, lambda parts, paths: None))
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    records = sum(Path(path).stat().st_size for path in folder.record_paths())
    return found | {
        "memory_mib": round(grown * 1_024 / MIB, 1),
        "records_bytes": records,
        "part_names_bytes": len(json.dumps([c.part for c in commits], indent=1)),
        "manifest_bytes": Path(folder.state, "manifest.json").stat().st_size,
    }


def sum_of(commits: list[Commit]) -> Counters:
    total = Counters()
    for commit in commits:
        total += Counters(**commit.counters)
    return total


if __name__ == "__main__":
    print(json.dumps(look(sys.argv[1])))
