"""kill -9 at random moments, the same call again each time: the output is that of an uninterrupted run, to the byte."""

from __future__ import annotations

import hashlib
import multiprocessing
import random
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import packhorse
from tests.models import WORDS

# All that a run with the null backend imports: a process is killed while it works, not while it starts.
PRELOAD = [
    "packhorse.api", "packhorse.backends.null", "packhorse.batching.padded", "packhorse.readers.parquet",
    "packhorse.tasks.text_classification", "packhorse.writers.parquet", "jinja2", "pandas", "pyarrow.parquet",
    "tokenizers",
]  # fmt: skip

KILLS = 25  # for each kind of output: 50 in all
DEADLINE_S = 120.0
JOB = {"backend": "null", "shard_rows": 200, "text_column": "text"}


def write_input(path: Path) -> None:
    draw = random.Random(0)
    texts = [" ".join(draw.choices(WORDS, k=draw.randint(0, 30))) for _ in range(12_000)]
    rows = [None if i % 997 == 0 else text for i, text in enumerate(texts)]
    pq.write_table(pa.table({"id": range(len(rows)), "text": rows}), path, row_group_size=1_700)


def digest(output: Path) -> dict[str, str]:
    """sha256 of what a user sees: the parts, or the one file."""
    files = sorted(output.glob("part-*")) if output.is_dir() else [output]
    return {f.name: hashlib.sha256(f.read_bytes()).hexdigest() for f in files}


def work(model: str, rows: str, output: str) -> None:
    packhorse.run(model, rows, output, **JOB)


@pytest.mark.parametrize("name", ["folder", "whole.parquet"])
def test_a_killed_run_goes_on_to_the_same_bytes(tmp_path: Path, null_model: Path, name: str) -> None:
    kill_and_go_on(tmp_path, null_model, name, KILLS, DEADLINE_S)


def kill_and_go_on(tmp_path: Path, null_model: Path, name: str, kills: int, deadline_s: float) -> None:
    """Runs the job again and again, killed `kills` times on the way, most of them after the first commit."""
    rows = tmp_path / "rows.parquet"
    write_input(rows)
    expected = tmp_path / "uninterrupted" / name
    work(str(null_model), str(rows), str(expected))

    spawn = multiprocessing.get_context("forkserver")
    spawn.set_forkserver_preload(PRELOAD)
    draw, deadline = random.Random(1), time.monotonic() + deadline_s
    killed = after_first_commit = finished = 0
    while killed < kills or not finished:
        assert time.monotonic() < deadline, f"{killed} kills, {finished} finished: too slow, or hanging"
        output = tmp_path / f"run{finished}" / name
        state = (output if name == "folder" else output.with_name(name + ".packhorse")) / "_packhorse"
        process = spawn.Process(target=work, args=(str(null_model), str(rows), str(output)))
        process.start()
        if killed < kills:
            wait_until_running(process, state, draw.random() < 0.9)
            process.join(draw.uniform(0.0, 0.25))
        else:
            process.join(deadline_s)
        if process.is_alive():
            process.kill()
            process.join()
            killed += 1
            after_first_commit += (state / "shards" / "000000.json").exists()
            continue
        assert process.exitcode == 0
        assert digest(output) == digest(expected)
        assert packhorse.verify(output).is_finished
        finished += 1
    assert after_first_commit >= kills * 4 // 5


def num_records(state: Path) -> int:
    try:
        return len(list(state.glob("shards/*.json")))
    except FileNotFoundError:  # a run that begins anew makes the folder again
        return 0


def wait_until_running(process: multiprocessing.process.BaseProcess, state: Path, past_first_commit: bool) -> None:
    """Waits for a commit that this process made, or not at all."""
    before = num_records(state)
    end = time.monotonic() + 10
    while past_first_commit and process.is_alive() and time.monotonic() < end:
        if num_records(state) > before:
            return
        time.sleep(0.002)
