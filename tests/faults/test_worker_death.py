"""Workers and the coordinator killed with kill -9: no row is lost, none is twice, nobody is left behind."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

import packhorse
from packhorse.errors import WorkerDiedError
from tests.null.devices import deadline, plant, workers_of, write_rows
from tests.null.runs import parts, run

ROWS, KILLS = 4_000, 10
JOB: dict[str, Any] = {"text_column": "text", "shard_rows": 40, "max_batch_tokens": 400}
# A shard takes some 0.04 s, so that there is something to kill.
SLOW = """
import time
checksums = null.NullModel.forward
def forward(self, batch):
    time.sleep(0.01)
    return checksums(self, batch)
null.NullModel.forward = forward
"""
# The preview and the first two shards of a worker come through.
STUCK = """
import itertools, time
checksums, count = null.NullModel.forward, itertools.count()
def forward(self, batch):
    time.sleep(100 if next(count) > 12 else 0)
    return checksums(self, batch)
null.NullModel.forward = forward
"""
# Dies in the shard that holds the row, where `folder` has no file for it yet, or always.
DIES = """
import os, pathlib, signal
import packhorse.executors.local as local
prepare = local.prepare
def prepared(rows, stages, budget):
    mark = pathlib.Path({folder!r}) / "died"
    if rows.shard.first_row <= {row} < rows.shard.first_row + rows.shard.num_rows and ({always} or not mark.exists()):
        mark.touch()
        os.kill(os.getpid(), signal.{signal})
    return prepare(rows, stages, budget)
local.prepare = prepared
"""


@pytest.fixture(autouse=True)
def _never_hangs() -> Iterator[None]:
    with deadline(150):
        yield
    assert not workers_of()


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rows(tmp_path_factory.mktemp("deaths") / "in.parquet", ROWS)


@pytest.fixture(scope="module")
def whole(null_model: Path, rows: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    out = tmp_path_factory.mktemp("deaths") / "out"
    run(null_model, rows, out, **JOB)
    return parts(out)


@pytest.mark.slow
def test_workers_killed_at_random_leave_the_output_as_it_is(
    null_model: Path, rows: Path, whole: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(monkeypatch, tmp_path / "site", SLOW)
    draw, killed, finished = random.Random(0), 0, threading.Event()

    def kill_now_and_then() -> None:
        nonlocal killed
        while not finished.wait(draw.uniform(0.05, 1.2)):
            alive = workers_of()
            if alive:
                draw.choice(alive).kill()
                killed += 1

    attempt = died = 0
    while killed < KILLS or attempt == died:
        attempt, out = attempt + 1, tmp_path / f"out{attempt - died}"
        finished.clear()
        killer = threading.Thread(target=kill_now_and_then)
        killer.start()
        try:
            report = run(null_model, rows, out, devices="cpu:2", **JOB)
        except WorkerDiedError:  # chance can hit one shard twice in a row: the same call goes on
            died += 1
            continue
        finally:
            finished.set()
            killer.join()
        assert parts(out) == whole
        assert packhorse.verify(out).is_finished
        assert report.rows == ROWS
    assert killed >= KILLS


@pytest.mark.parametrize("signum", ["SIGKILL", "SIGSEGV"])
def test_the_shard_of_a_worker_that_died_is_redone(
    null_model: Path, rows: Path, whole: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, signum: str
) -> None:
    code = DIES.format(folder=str(tmp_path), row=1_234, always=False, signal=signum)
    plant(monkeypatch, tmp_path / "site", code)
    report = run(null_model, rows, tmp_path / "out", devices="cpu:2", **JOB)
    assert parts(tmp_path / "out") == whole
    assert sum(worker["restarts"] for worker in report.workers) == 1


def test_a_shard_that_ends_two_workers_ends_the_job_and_is_named(
    null_model: Path, rows: Path, whole: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        plant(patch, tmp_path / "site", DIES.format(folder=str(tmp_path), row=1_234, always=True, signal="SIGKILL"))
        with pytest.raises(WorkerDiedError, match=r"shard 30, rows 1,200 to 1,239: two worker processes in a row"):
            run(null_model, rows, tmp_path / "out", devices="cpu:2", **JOB)
    assert len(parts(tmp_path / "out")) <= 30
    run(null_model, rows, tmp_path / "out", **JOB)
    assert parts(tmp_path / "out") == whole


def test_workers_that_never_start_end_the_job(
    null_model: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(monkeypatch, tmp_path / "site", "import os\nos._exit(7)\n")
    with pytest.raises(WorkerDiedError, match=r"on cpu ended with exit code 7, after 3 restarts .*; no other is left"):
        run(null_model, rows, tmp_path / "out", devices="cpu:2", **JOB)


def test_a_device_whose_worker_never_starts_is_left_out(
    null_model: Path, rows: Path, whole: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first worker leaves a mark; all that begin after it die."""
    code = f"""
import os, pathlib
try:
    os.close(os.open({str(tmp_path / "first")!r}, os.O_CREAT | os.O_EXCL))
except FileExistsError:
    os._exit(7)
"""
    plant(monkeypatch, tmp_path / "site", code + SLOW)
    report = run(null_model, rows, tmp_path / "out", devices="cpu:2", **JOB)
    assert parts(tmp_path / "out") == whole
    assert sorted(worker["rows"] for worker in report.workers) == [0, ROWS]


COMMAND = [sys.executable, "-m", "packhorse", "run"]


def begun(model: Path, rows: Path, out: Path) -> subprocess.Popen[bytes]:
    """A command over two processes, once it has committed something."""
    flags = ["-o", str(out), "--backend", "null", "--devices", "cpu:2", "--text-column", "text", "--shard-rows", "40"]
    before = len(list(out.glob("part-*")))
    path = os.pathsep.join(filter(None, [str(out.parent / "site"), os.environ.get("PYTHONPATH")]))
    process = subprocess.Popen(
        [*COMMAND, str(model), str(rows), *flags, "--max-batch-tokens", "400"], stderr=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": path}, start_new_session=True,
    )  # fmt: skip
    while len(list(out.glob("part-*"))) < before + 2:
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    return process


def ended(workers: list[psutil.Process]) -> bool:
    return not psutil.wait_procs(workers, timeout=10)[1]


@pytest.mark.slow
def test_a_killed_coordinator_leaves_no_worker_behind(
    null_model: Path, rows: Path, whole: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        plant(patch, tmp_path / "site", SLOW)
    for wait_s in (0.0, 0.3, 0.7):
        process = begun(null_model, rows, tmp_path / "out")
        workers = workers_of(process.pid)
        assert len(workers) == 2
        time.sleep(wait_s)
        process.kill()
        process.communicate()
        assert ended(workers)
    assert 2 <= len(parts(tmp_path / "out")) < len(whole)
    run(null_model, rows, tmp_path / "out", **JOB)
    assert parts(tmp_path / "out") == whole


def test_ctrl_c_reaches_the_whole_group_and_what_is_complete_is_committed(
    null_model: Path, rows: Path, whole: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        plant(patch, tmp_path / "site", SLOW)
    process = begun(null_model, rows, tmp_path / "out")
    workers = workers_of(process.pid)
    os.killpg(process.pid, signal.SIGINT)
    said = process.communicate(timeout=60)[1].decode()
    assert process.returncode == 130 and "Traceback" not in said, said
    assert "it is started again" not in said
    assert ended(workers)
    assert 2 <= len(parts(tmp_path / "out")) < len(whole)
    run(null_model, rows, tmp_path / "out", devices="cpu:2", **JOB)
    assert parts(tmp_path / "out") == whole


def test_twice_it_ends_at_once(null_model: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        plant(patch, tmp_path / "site", STUCK)
    process = begun(null_model, rows, tmp_path / "out")
    workers = workers_of(process.pid)
    for _ in range(2):
        os.killpg(process.pid, signal.SIGINT)
        time.sleep(0.2)
    process.communicate(timeout=20)
    assert process.returncode == 130
    assert ended(workers)
