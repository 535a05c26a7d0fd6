"""packhorse, as a user runs it: the command `packhorse run`, from the Parquet file to Parquet files on disk.

`wall_s` is the whole command, interpreter start and imports included. `run_s` is the run's own wall time
without setting up the model, so it holds reading, tokenizing, forward and durable writing; the other
contenders write nothing. `peak_bytes` is the highest sum of the resident memory of the command and its
workers, looked at 20 times a second: pages that workers share count once for each. Padding efficiency is the
report's own; real tokens are counted here.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq

from packhorse.comparison.contenders._measure import token_lengths
from packhorse.comparison.contract import (
    ATTENTIONS,
    BACKENDS,
    PRECISIONS,
    Measurement,
    ModelSpec,
    Options,
    Result,
    Rows,
    Task,
)

__all__ = ["ATTENTIONS", "BACKENDS", "BY_DEFAULT", "IS_SLOW", "PRECISIONS", "TASKS", "run"]

TASKS: tuple[Task, ...] = ("text-classification", "embedding")
BY_DEFAULT: tuple[str, ...] = ("fp32", "bf16")
IS_SLOW = False

MEMORY_POLL_S = 0.05
PATHS = ("model", "input", "output", "html_path")  # they say nothing on another machine
OUTPUT_COLUMNS: dict[Task, str] = {"text-classification": "scores", "embedding": "embedding"}


class Report(NamedTuple):
    """What is read of the run's report. `run_s`: wall time without setting up the model, in seconds."""

    run_s: float
    real_tokens: int
    computed_tokens: int
    batches: int
    precision: str


def run(model: ModelSpec, rows: Rows, options: Options) -> Result:
    """Run the command in a process of its own and read back what it wrote."""
    out = options.work_dir / "out"
    wall_s, peak_bytes = watch(command(model, rows, options, out), options.work_dir / "packhorse.log")
    report, content = read_report(out / "_packhorse" / "report.json")
    measurement = Measurement(
        num_rows=len(rows.texts),
        run_s=report.run_s,
        load_s=wall_s - report.run_s,
        wall_s=wall_s,
        peak_bytes=peak_bytes,
        real_tokens=int(token_lengths(model, rows.texts).sum()),
        computed_tokens=report.computed_tokens,
        padding_efficiency=report.real_tokens / report.computed_tokens,
        num_batches=report.batches,
        precision=report.precision,
        details={"report": {name: value for name, value in content.items() if name not in PATHS}},
    )
    return Result(measurement, read_outputs(out, OUTPUT_COLUMNS[model.task], rows.ids))


def command(model: ModelSpec, rows: Rows, options: Options, out: Path) -> list[str]:
    """The command line."""
    where = [str(model.folder), str(rows.file), "-o", str(out)]
    how = ["--backend", options.backend, "--attention", options.attention, "--precision", options.precision]
    what = [] if model.task == "embedding" else ["--scores", "all"]
    task = "feature-extraction" if model.task == "embedding" else model.task
    settings = [*how, *what, "--task", task, "--max-length", str(model.max_length), "--quiet", "--overwrite"]
    return [sys.executable, "-m", "packhorse", "run", *where, *settings]


def read_report(file: Path) -> tuple[Report, dict[str, Any]]:
    """The fields a comparison needs, and the whole report."""
    content = json.loads(file.read_text(encoding="utf-8")) | {"output": "out"}  # not a folder of this machine
    report = Report(
        run_s=content["wall_s"],
        real_tokens=content["this_run"]["real_tokens"],
        computed_tokens=content["this_run"]["computed_tokens"],
        batches=content["this_run"]["batches"],
        precision=content["plan"]["precision"],
    )
    return report, content


def read_outputs(out: Path, column: str, ids: np.ndarray) -> np.ndarray:
    """The predictions of all parts, float32 [N, C], checked to be in the order of the rows."""
    table = pa.concat_tables(pq.read_table(part) for part in sorted(out.glob("part-*.parquet")))
    if "id" in table.column_names and not np.array_equal(table["id"].to_numpy(), ids):
        raise ValueError("the rows of the output are not those of the input, in its order")
    if table[column].null_count:
        raise ValueError(f"{table[column].null_count} of {table.num_rows} rows have no prediction")
    values = np.concatenate([chunk.flatten().to_numpy(zero_copy_only=False) for chunk in table[column].chunks])
    return values.astype(np.float32).reshape(table.num_rows, -1)


def watch(arguments: list[str], log_file: Path) -> tuple[float, int]:
    """Run a command to its end: seconds it took, and the highest summed resident bytes of its processes."""
    peak_bytes, start = 0, time.perf_counter()
    with log_file.open("wb") as log:
        process = subprocess.Popen(arguments, stdout=log, stderr=subprocess.STDOUT)
        while process.poll() is None:
            peak_bytes = max(peak_bytes, resident_bytes(process.pid))
            with suppress(subprocess.TimeoutExpired):
                process.wait(MEMORY_POLL_S)
    wall_s = time.perf_counter() - start
    if process.returncode:
        lines = log_file.read_text(errors="replace").strip().splitlines() or ["no message"]
        raise RuntimeError(f"packhorse exit code {process.returncode}: {lines[-1]}")
    return wall_s, peak_bytes


def resident_bytes(pid: int) -> int:
    """Resident bytes of a process and all that it started; 0 once it has ended."""
    total = 0
    with suppress(psutil.NoSuchProcess):
        command = psutil.Process(pid)
        for process in (command, *command.children(recursive=True)):
            total += process.memory_info().rss
    return total
