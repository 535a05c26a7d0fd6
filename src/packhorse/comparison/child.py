"""The process in which one contender runs: `python -m packhorse.comparison.child JOB.json`.

It writes beside the job file `result.json` (a Measurement) and `outputs.npy`. An error is not caught: its
traceback goes to standard error, and the exit code tells.
"""

from __future__ import annotations

import importlib
import os
import signal
import sys
import threading
from pathlib import Path

import numpy as np

from packhorse.comparison.contract import Job, Result
from packhorse.comparison.rows import read_rows


def main(job_file: Path) -> None:
    """Run the job and write its result."""
    job = Job.model_validate_json(job_file.read_text(encoding="utf-8"))
    rows = read_rows(job.rows_file)
    result: Result = importlib.import_module(job.module).run(job.model, rows, job.options)
    if len(result.outputs) != len(rows.texts):
        raise ValueError(f"{len(result.outputs)} outputs for {len(rows.texts)} rows")
    np.save(job_file.parent / "outputs.npy", result.outputs)
    (job_file.parent / "result.json").write_text(result.measurement.model_dump_json(), encoding="utf-8")


def end_with_parent() -> None:
    """A thread that waits for the pipe from the parent to close, and then kills this session."""

    def watch() -> None:
        os.read(0, 1)
        os.killpg(0, signal.SIGKILL)

    if os.getpid() == os.getsid(0) and not os.isatty(0):  # started by processes.py, and not by hand
        threading.Thread(target=watch, daemon=True).start()


if __name__ == "__main__":
    end_with_parent()
    main(Path(sys.argv[1]))
