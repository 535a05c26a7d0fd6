"""kill -9 while an output is mirrored, added to or retried, the same call again each time: the bytes of one go."""

from __future__ import annotations

import hashlib
import multiprocessing
import random
import shutil
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import packhorse
from tests.faults.test_kill import PRELOAD
from tests.models import WORDS
from tests.null.stages import run_on_device

KILLS = 8
DEADLINE_S = 120.0
JOB: dict[str, Any] = {"shard_rows": 100, "text_column": "text"}


def texts(count: int) -> list[str]:
    draw = random.Random(count)
    return [" ".join(draw.choices(WORDS, k=draw.randint(0, 40))) for _ in range(count)]


def write_files(folder: Path, names: str) -> None:
    folder.mkdir(exist_ok=True)
    for name in names:
        rows = texts(700 + 10 * ord(name))
        pq.write_table(pa.table({"id": range(len(rows)), "text": rows}), folder / f"{name}.parquet", row_group_size=170)


def begin(kind: str, model: Path, folder: Path, output: Path) -> tuple[Any, dict[str, Any]]:
    """What is there before the call that is killed; its input and settings."""
    rows = folder / "in"
    if kind == "retry_errors":
        table = {"text": texts(6_000)}
        run_on_device(model, table, output, 30, **JOB)
        return table, JOB | {"retry_errors": True}
    write_files(rows, "bd")
    if kind == "append":
        packhorse.run(model, rows, output, backend="null", **JOB)
    write_files(rows, "ac")
    return str(rows), JOB | {kind: True}


def work(model: str, rows: Any, output: str, settings: dict[str, Any]) -> None:
    packhorse.run(model, rows, output, backend="null", **settings)


def digest(output: Path) -> dict[str, str]:
    """sha256 of what a user sees, and of the records."""
    files = [*output.rglob("*.parquet"), *(output / "_packhorse").glob("[sf]*/*.json")]
    return {str(f.relative_to(output)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}


def marks(state: Path) -> set[tuple[str, int]]:
    """Changes with every commit."""
    found = set()
    for path in state.glob("*/*.json"):
        try:
            found.add((path.name, path.stat().st_mtime_ns))
        except FileNotFoundError:  # a record of what was being replaced
            continue
    return found


@pytest.mark.parametrize("kind", ["mirror", "append", "retry_errors"])
def test_a_killed_change_goes_on_to_the_same_bytes(null_model: Path, tmp_path: Path, kind: str) -> None:
    rows, settings = begin(kind, null_model, tmp_path, tmp_path / "before")
    if (tmp_path / "before").exists():
        shutil.copytree(tmp_path / "before", tmp_path / "once")
    work(str(null_model), rows, str(tmp_path / "once"), settings)
    expected = digest(tmp_path / "once")
    spawn = multiprocessing.get_context("forkserver")
    spawn.set_forkserver_preload(PRELOAD)
    draw, deadline = random.Random(2), time.monotonic() + DEADLINE_S
    killed = finished = 0
    while killed < KILLS or not finished:
        assert time.monotonic() < deadline, f"{killed} kills, {finished} finished: too slow, or hanging"
        output = tmp_path / f"run{finished}"
        if not output.exists() and (tmp_path / "before").exists():
            shutil.copytree(tmp_path / "before", output)
        process = spawn.Process(target=work, args=(str(null_model), rows, str(output), settings))
        process.start()
        if killed < KILLS:
            before = marks(output / "_packhorse")
            while process.is_alive() and marks(output / "_packhorse") == before:
                time.sleep(0.002)
            process.join(draw.uniform(0.0, 0.1))
        else:
            process.join(DEADLINE_S)
        if process.is_alive():
            process.kill()
            process.join()
            killed += 1
            continue
        assert process.exitcode == 0
        assert digest(output) == expected
        assert packhorse.verify(output).is_finished
        finished += 1
