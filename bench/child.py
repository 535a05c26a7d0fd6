"""The process in which one contender runs: `python -m bench.child JOB.json`.

It writes beside the job file `result.json` (a Measurement) and `outputs.npy`. An error is not caught: its
traceback goes to standard error, and the exit code tells.
"""

import importlib
import sys
from pathlib import Path

import numpy as np

from bench.contract import Job, Result
from bench.workloads import read_rows


def main(job_file: Path) -> None:
    """Run the job and write its result."""
    job = Job.model_validate_json(job_file.read_text(encoding="utf-8"))
    rows = read_rows(job.rows_file)
    result: Result = importlib.import_module(job.module).run(job.model, rows, job.options)
    if len(result.outputs) != len(rows.texts):
        raise ValueError(f"{len(result.outputs)} outputs for {len(rows.texts)} rows")
    np.save(job_file.parent / "outputs.npy", result.outputs)
    (job_file.parent / "result.json").write_text(result.measurement.model_dump_json(), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
