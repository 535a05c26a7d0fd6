"""Runs of 1 to 100 million rows around the null backend: memory, bookkeeping, going on after a kill, cost of a stage.

    python bench/scale.py all --json bench/results/scale.json            # half an hour on 2 cores
    python bench/scale.py jobs --rows 1000000 --kills 0.3,0.7,0.99       # one step, for trying
    python bench/scale.py whole --rows 1000000 --json out.json

jobs: made-up rows (scale_rows.py) to their end; with --kills the process kills itself at those shares of the rows, and
another one goes on. whole: `packhorse run` on a Parquet file of dictionary words. stages: nanoseconds a row, stage by
stage. books: run folders of up to 152,588 shards, those of 10 billion rows. lanes: scale_lanes.py. Times are of the
processor (time.process_time), so that another program on the machine changes little.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench import overhead
from bench.scale_books import books
from bench.scale_lanes import lanes
from bench.scale_rows import SyntheticLoader, SyntheticReader, write_model
from bench.scale_stages import stage_costs
from packhorse.config import EngineConfig
from packhorse.loading import Loader
from packhorse.machine import read_machine
from packhorse.outputs.manifest import RunFolder
from packhorse.plans import Plan
from packhorse.readers import open_input

JOB = Path(__file__).with_name("scale_job.py")
MILLION = 1_000_000
KILLS = (0.3, 0.7, 0.99)
MIB = 1 << 20
BOOK_SHARDS = (1_529, 15_262, 152_591)  # of 100 million, 1 and 10 billion rows
LANES = (10, 100, 500, 1_000)
STAGE_ROWS = {"nanotoken": MILLION, "hf": 400_000}

Found = dict[str, Any]


def job(scratch: Path, num_rows: int, kills: tuple[float, ...] = ()) -> Found:
    """One output, by as many processes as are killed and one more."""
    output, model = scratch / f"out{num_rows}-{len(kills)}", write_model(scratch / "model")
    runs = [_process(num_rows, output, model, share) for share in (*kills, None)]
    memory = [point for run in runs for point in run.pop("memory")]
    state = output / "_packhorse"
    return {
        "rows": num_rows,
        "cpu_us_per_row": round(1e6 * sum(run["cpu_s"] for run in runs) / num_rows, 3),
        "peak_mib": max(mib for _, mib in memory),
        "memory_mib": _thinned(memory),
        "shards": runs[-1]["shards"],
        "manifest_bytes": (state / "manifest.json").stat().st_size,
        "records_bytes": sum(path.stat().st_size for path in (state / "shards").iterdir()),
        "report_bytes": sum((state / f"report.{kind}").stat().st_size for kind in ("json", "html")),
        "parts_bytes": sum(path.stat().st_size for path in output.glob("part-*")),
        "processes": runs,
    }


def _process(num_rows: int, output: Path, model: Path, kill_at: float | None) -> Found:
    told = [] if kill_at is None else ["--kill-at", str(kill_at)]
    done = subprocess.run(
        [sys.executable, str(JOB), str(num_rows), str(output), str(model), *told], stdout=subprocess.PIPE, text=True
    )
    if done.returncode != (0 if kill_at is None else -9):
        raise SystemExit(f"scale_job.py ended with {done.returncode}")
    found: Found = json.loads(done.stdout)
    return found | {"kill_at": kill_at}


def _thinned(points: list[list[float]], most: int = 20) -> list[list[float]]:
    return [points[i * (len(points) - 1) // (most - 1)] for i in range(most)] if len(points) > most else points


def whole(scratch: Path, num_rows: int) -> Found:
    """The command itself on rows in a file, the words of a real vocabulary."""
    rows, model, output = scratch / "rows.parquet", scratch / "words", scratch / "whole"
    if not model.exists():
        overhead.write_model(model)
    overhead.write_rows(rows, num_rows)
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "-m", "packhorse", "run", str(model), str(rows), "-o", f"{output}/", "--backend", "null"]
    subprocess.run([*command, "--keep", "", "--overwrite", "--quiet"], check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    report = json.loads((output / "_packhorse/report.json").read_text())
    return {
        "rows": num_rows, "file_bytes": rows.stat().st_size, "cpu_us_per_row": round(1e6 * cpu_s / num_rows, 3),
        "peak_mib": round(report["peak_bytes"] / MIB, 1), "shards": report["shards"],
        "tokenizer": report["plan"]["tokenizer"], "status": report["status"],
    }  # fmt: skip


def stages(scratch: Path) -> Found:
    """Nanoseconds a row: of made-up rows, and of the words with two tokenizers."""
    whole(scratch, MILLION)
    words = EngineConfig(model=str(scratch / "words"), backend="null")
    plan = _plan_of(scratch / "whole")
    reader = open_input(str(scratch / "rows.parquet"))
    found = {
        name: stage_costs(reader, Loader(words), plan.model_copy(update={"tokenizer": name}), rows)
        for name, rows in STAGE_ROWS.items()
    }
    job(scratch, MILLION)
    made_up = SyntheticLoader(EngineConfig(model=str(scratch / "model"), backend="null"))
    plan = _plan_of(scratch / f"out{MILLION}-0")
    return {"made-up rows": stage_costs(SyntheticReader(2 * MILLION), made_up, plan, 2 * MILLION)} | found


def _plan_of(output: Path) -> Plan:
    return Plan(**RunFolder(str(output), is_file=False).manifest()["plan"])


def steps(scratch: Path, options: argparse.Namespace) -> dict[str, dict[str, Callable[[], Any]]]:
    """What each step measures, by name; one after the other, written down as they come."""
    rows, kills = options.rows, tuple(float(share) for share in options.kills.split(",") if share)
    if rows:
        jobs: dict[str, Callable[[], Any]] = {f"{rows}": partial(job, scratch, rows, kills)}
        wholes: dict[str, Callable[[], Any]] = {f"{rows}": partial(whole, scratch, rows)}
    else:
        jobs = {f"{n * MILLION}": partial(job, scratch, n * MILLION) for n in (1, 10)}
        jobs |= {f"{n * MILLION}, killed": partial(job, scratch, n * MILLION, KILLS) for n in (10, 100)}
        wholes = {f"{n * MILLION}": partial(whole, scratch, n * MILLION) for n in (1, 10)}
    return {
        "jobs": jobs,
        "whole": wholes,
        "stages": {"ns_per_row": partial(stages, scratch)},
        "books": {f"{count}": partial(books, count) for count in BOOK_SHARDS},
        "lanes": {f"{count}": partial(lanes, count, 2.0) for count in LANES},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", choices=("all", "jobs", "whole", "stages", "books", "lanes"))
    parser.add_argument("--rows", type=int, help="one run of so many instead of those of the table")
    parser.add_argument("--kills", default="", help="with --rows: shares of the rows at which the process kills itself")
    parser.add_argument("--json", type=Path, help="figures are added to those that stand there")
    parser.add_argument("--scratch", type=Path, help="folder for inputs and outputs; default: one that is deleted")
    options = parser.parse_args()
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    with tempfile.TemporaryDirectory(prefix="packhorse-scale-", dir=options.scratch) as scratch:
        for step, measures in steps(Path(scratch), options).items():
            for name, measure in measures.items() if options.step in ("all", step) else ():
                found = measure()
                print(step, name, json.dumps(found), flush=True)
                if options.json:
                    _add(options.json, step, name, found)


def _add(path: Path, step: str, name: str, found: Any) -> None:
    known = json.loads(path.read_text()) if path.is_file() else {"machine": read_machine()}
    known.setdefault(step, {})[name] = found
    path.write_text(json.dumps(known, indent=1) + "\n")


if __name__ == "__main__":
    main()
