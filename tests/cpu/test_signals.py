"""Stopped by a signal, the command says so in its exit code, and again started it ends as if never stopped."""

from __future__ import annotations

import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.cpu.command import DEADLINE_S, packhorse, parts, started, write_rows

ROWS, SHARD_ROWS = 20_000, 50  # 400 commits


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rows(tmp_path_factory.mktemp("signals") / "in.parquet", ROWS)


@pytest.fixture(scope="module")
def uninterrupted(null_model: Path, rows: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    out = tmp_path_factory.mktemp("signals") / "out"
    assert packhorse(*command(null_model, rows, out)).returncode == 0
    return parts(out)


def command(model: Path, rows: Path, out: Path) -> list[object]:
    return ["run", model, rows, "-o", out, "--backend", "null", "--shard-rows", SHARD_ROWS]


def wait_for(process: subprocess.Popen[str], path: Path) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not path.exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, f"{path} did not appear"
        time.sleep(0.005)


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stopped_run_is_continued_to_the_same_bytes(
    null_model: Path, rows: Path, uninterrupted: dict[str, bytes], tmp_path: Path, signum: int, code: int
) -> None:
    out = tmp_path / "out"
    process = started(*command(null_model, rows, out))
    wait_for(process, out / "part-000000.parquet")
    process.send_signal(signum)
    _, said = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == code
    assert f"stopped by signal {signum}" in said and "Traceback" not in said
    done_before = len(parts(out))
    assert 0 < done_before < ROWS // SHARD_ROWS
    assert f"{done_before * SHARD_ROWS:,} rows are committed" in said

    verified = packhorse("verify", out)
    assert verified.returncode == 0 and "not finished yet" in verified.stdout

    again = packhorse(*command(null_model, rows, out))
    assert again.returncode == 0
    assert f"going on after {done_before * SHARD_ROWS:,} rows" in again.stderr
    assert parts(out) == uninterrupted
