"""A job in a process of its own: started, kept within its time limit, and gone afterwards with all that it started."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import numpy as np

from packhorse.comparison.contract import Job, Measurement

OVER_LIMIT = "OverLimitError: "
GRACE_S = 2.0  # a child that has to give up by itself says more than one that was stopped


class ChildError(Exception):
    """A child process failed; the message is the last line it wrote."""


def run_child(job: Job, folder: Path) -> tuple[Measurement, np.ndarray]:
    """Run a job to its end and read what it left in the folder. Raises ChildError."""
    job_file = folder / "job.json"
    job_file.write_text(job.model_dump_json(), encoding="utf-8")
    log = folder / "child.log"
    limit_s = job.options.limit_s
    try:
        status = _wait([sys.executable, "-m", "packhorse.comparison.child", str(job_file)], log, limit_s)
    except subprocess.TimeoutExpired:
        raise ChildError(f"over the limit of {limit_s:g} s") from None
    if status:
        raise ChildError(last_line(log, status))
    measurement = Measurement.model_validate_json((folder / "result.json").read_text(encoding="utf-8"))
    return measurement, np.load(folder / "outputs.npy")


def _wait(command: list[str], log: Path, limit_s: float | None) -> int:
    """The exit code. The child leads a session of its own, which ends with this call, however it ends.

    Its standard input is a pipe that nobody writes to: the child sees it close when this process dies.
    """
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}  # nothing is fetched while the clock runs
    with log.open("wb") as out:
        child = subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=out, stderr=out, start_new_session=True
        )
    try:
        return child.wait(None if limit_s is None else limit_s + GRACE_S)
    finally:
        end_session(child)


def end_session(leader: subprocess.Popen[bytes]) -> None:
    """Kill a process that leads its own session, and all that it started."""
    with suppress(ProcessLookupError):
        os.killpg(leader.pid, signal.SIGKILL)
    leader.wait()
    if leader.stdin is not None:
        leader.stdin.close()


def last_line(log: Path, status: int) -> str:
    """The last line a failed child wrote; of one killed by a signal, the signal."""
    if status < 0:
        return f"ended by signal {-status}{' (out of memory?)' if status == -9 else ''}"
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    if not lines:
        return f"exit code {status}, no message"
    _, found, limit = lines[-1].partition(OVER_LIMIT)
    return limit if found else lines[-1].strip()
