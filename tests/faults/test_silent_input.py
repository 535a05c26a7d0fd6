"""Standard input that stays open and says nothing: one signal ends the job, and the same command goes on."""

from __future__ import annotations

import array
import contextlib
import fcntl
import io
import os
import signal
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any

import pytest

import packhorse
from packhorse.errors import InterruptedRunError, RowFailedError
from packhorse.executors.local import Stop
from packhorse.readers import open_input
from packhorse.readers.options import ReaderOptions
from tests.cpu.command import COMMAND, DEADLINE_S, ENVIRONMENT, parts
from tests.null.devices import deadline
from tests.null.runs import run

LINES = [f"a dull film number {i}" for i in range(30_000)]  # 739 KB: the first two blocks, and some of the third
SHARD_ROWS = 1_000
FIRST_BLOCK_ROWS = 5_000  # whole shards in the first block, of 128 KiB; it comes out when the second is full
END_S = 10.0  # from a signal to the end, on a machine that does other things too; before, it took for ever
PLACES = [[], pytest.param(["--devices", "cpu:2"], marks=pytest.mark.slow)]


def command(model: Path, out: Path, *more: str) -> list[str]:
    flags = ["-o", str(out), "--backend", "null", "--input-format", "text", "--shard-rows", str(SHARD_ROWS)]
    return ["run", str(model), "-", *flags, *more]


def text(lines: list[str]) -> bytes:
    return "".join(f"{line}\n" for line in lines).encode()


def begun(*arguments: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [*COMMAND, *arguments], env=ENVIRONMENT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def fed(process: subprocess.Popen[bytes], data: bytes) -> None:
    """Waits until the process has taken all of it, so that it waits for more."""
    assert process.stdin is not None
    process.stdin.write(data)
    process.stdin.flush()
    until(process, lambda: num_waiting(process.stdin) == 0)


def num_waiting(pipe: Any) -> int:
    """Bytes in a pipe that nobody has taken."""
    count = array.array("i", [0])
    fcntl.ioctl(pipe.fileno(), termios.FIONREAD, count)
    return count[0]


def until(process: subprocess.Popen[bytes], is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not is_so():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)


def stopped(process: subprocess.Popen[bytes], signum: int) -> str:
    """What it said. Its input stays open all the time."""
    process.send_signal(signum)
    try:
        assert process.wait(END_S) == 128 + signum
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    assert process.stdin is not None and process.stderr is not None
    said = process.stderr.read().decode()
    for pipe in (process.stdin, process.stdout, process.stderr):
        pipe.close()  # type: ignore[union-attr]
    assert f"stopped by signal {signum}" in said and "goes on from there" in said
    assert "Traceback" not in said and "Fatal" not in said
    return said


def piped(stream: IO[bytes]) -> SimpleNamespace:
    """What stands in the place of sys.stdin."""
    return SimpleNamespace(buffer=stream, isatty=lambda: False)


def finished(model: Path, out: Path, rows: Path) -> dict[str, bytes]:
    """The parts that the same command makes with all of its input, in this process."""
    with rows.open("rb") as stream, pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdin", piped(stream))
        run(model, "-", out, input_format="text", shard_rows=SHARD_ROWS)
    return parts(out)


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("silent") / "rows.txt"
    path.write_bytes(text(LINES))
    return path


@pytest.fixture(scope="module")
def whole(null_model: Path, rows: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    return finished(null_model, tmp_path_factory.mktemp("silent") / "out", rows)


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_one_signal_ends_a_job_whose_input_says_nothing_more(null_model: Path, tmp_path: Path, signum: int) -> None:
    process = begun(*command(null_model, tmp_path / "out"))
    fed(process, text(LINES[:3]))
    assert "what was committed before stays" in stopped(process, signum)
    assert parts(tmp_path / "out") == {}


@pytest.mark.parametrize("more", PLACES, ids=["one", "devices"])
def test_rows_that_came_before_the_silence_are_committed_once(
    null_model: Path, rows: Path, whole: dict[str, bytes], tmp_path: Path, more: list[str]
) -> None:
    out = tmp_path / "out"
    process = begun(*command(null_model, out, *more))
    fed(process, text(LINES))
    until(process, lambda: len(parts(out)) == FIRST_BLOCK_ROWS // SHARD_ROWS)
    assert f"{FIRST_BLOCK_ROWS:,} rows are committed" in stopped(process, signal.SIGINT)
    assert packhorse.verify(out).rows == FIRST_BLOCK_ROWS
    assert finished(null_model, out, rows) == whole


@pytest.mark.parametrize("kind", ["jsonl", "csv", "tsv", "text"])
def test_a_reader_looks_for_a_stop_while_it_waits(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    reading, writing = os.pipe()
    stop = Stop()
    timer = threading.Timer(0.3, stop.set, [signal.SIGTERM])
    with os.fdopen(reading, "rb") as stream, os.fdopen(writing, "wb"):
        monkeypatch.setattr(sys, "stdin", piped(stream))
        timer.start()
        with pytest.raises(InterruptedRunError) as raised:
            open_input("-", options=ReaderOptions(kind), on_wait=stop.check).fingerprint()
    assert raised.value.exit_code == 143


def test_what_python_has_read_already_is_not_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    """A program took the first line of its standard input itself; the rest lies in the buffer of sys.stdin."""
    reading, writing = os.pipe()
    with os.fdopen(reading, "rb") as stream:
        os.write(writing, b"a title\nx\ny\n")
        os.close(writing)
        assert isinstance(stream, io.BufferedReader) and stream.readline() == b"a title\n"
        monkeypatch.setattr(sys, "stdin", piped(stream))
        source: Any = open_input("-", options=ReaderOptions("text"))
        assert source.fingerprint() and source._sources[0].open().read(100) == b"x\ny\n"


@pytest.mark.parametrize("devices", ["cpu", pytest.param("cpu:2", marks=pytest.mark.slow)])
def test_a_job_that_fails_does_not_wait_for_more_input(
    null_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, devices: str
) -> None:
    reading, writing = os.pipe()
    feeding = threading.Thread(target=written, args=[writing, b"\xff\n" + text(LINES)])
    with deadline(60):
        with os.fdopen(reading, "rb") as stream:
            monkeypatch.setattr(sys, "stdin", piped(stream))
            feeding.start()
            settings = {"input_format": "text", "shard_rows": SHARD_ROWS, "on_error": "fail", "devices": devices}
            with pytest.raises(RowFailedError, match="not UTF-8"):
                run(null_model, "-", tmp_path / "out", **settings)
        feeding.join()
    os.close(writing)


def written(pipe: int, data: bytes) -> None:
    """All of it, or what is taken before the other end is closed; this end stays open."""
    with contextlib.suppress(BrokenPipeError):
        while data:
            data = data[os.write(pipe, data) :]
