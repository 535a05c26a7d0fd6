"""kill -9 in the middle of generation jobs, the same command again each time: the parts are those of an uninterrupted
run, to the byte."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path
from typing import Any

import pytest

import packhorse as library
from tests.cpu.command import DEADLINE_S, forked, forked_start, parts
from tests.fork_server import Forked
from tests.writers_of_text import save_writer, texts

ROWS, SHARD_ROWS = 48, 8
AT_SHARDS = (0, 3)  # commits that are there when the process is killed
GREEDY = ["--logprobs"]
SAMPLED = ["--do-sample", "--temperature", "1.2", "--num-return-sequences", "2", "--seed", "3"]
JOBS: dict[str, tuple[str, list[str]]] = {
    "llama greedy": ("llama", GREEDY),
    "llama sampled": ("llama", SAMPLED),
    "t5 sampled": ("t5", SAMPLED),
}
FIRST = "llama sampled"  # a process takes seconds to import torch: the others are slow


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("writers")
    return {kind: save_writer(root / kind, kind, ends=None) for kind in ("llama", "t5")}


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts(ROWS, 12)))
    return path


@pytest.mark.parametrize(
    "name", [FIRST, *(pytest.param(name, marks=pytest.mark.slow) for name in JOBS if name != FIRST)]
)
def test_a_killed_job_goes_on_to_the_same_bytes(
    folders: dict[str, Path], rows: Path, tmp_path: Path, name: str
) -> None:
    kind, flags = JOBS[name]
    job: list[Any] = ["--shard-rows", SHARD_ROWS, "--max-new-tokens", 60, "--batch-size", 3, "--tune", "off", *flags]
    whole, killed = ([*("run", folders[kind], rows, "-o", tmp_path / out), *job] for out in ("whole", "killed"))
    done = forked(*whole)
    assert done.returncode == 0, done.stderr
    seen = []
    for wanted in AT_SHARDS:
        seen.append(kill_inside_a_shard(killed, tmp_path / "killed", wanted))
    assert all(count < ROWS // SHARD_ROWS for count in seen) and seen[-1] >= AT_SHARDS[-1], seen
    done = forked(*killed)
    assert done.returncode == 0, done.stderr
    assert f"going on after {seen[-1] * SHARD_ROWS:,} rows" in done.stderr
    assert parts(tmp_path / "killed") == parts(tmp_path / "whole") and len(parts(tmp_path / "whole")) == 6
    assert library.verify(tmp_path / "killed").is_finished


def kill_inside_a_shard(command: list[Any], output: Path, wanted: int) -> int:
    """Kills the command once that many shards are committed, or, where none is wanted, once the manifest is there: the
    next shard's rows are being written on. Returns the commits that there were."""
    process = forked_start(*command)
    sign = output / "_packhorse" / (f"shards/{wanted - 1:06d}.json" if wanted else "manifest.json")
    wait_for(process, sign)
    time.sleep(0.05)
    process.kill()
    process.communicate()
    assert process.returncode == -9, "it was finished before it could be killed"
    return len(list((output / "_packhorse" / "shards").glob("*.json")))


def wait_for(process: Forked, path: Path) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not path.exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, f"{path} did not appear"
        time.sleep(0.005)


@pytest.mark.slow
def test_signals_stop_a_job_between_two_steps(folders: dict[str, Path], rows: Path, tmp_path: Path) -> None:
    """Control-C and then SIGTERM, each long before the shard would have been done; the third run finishes it."""
    job: list[Any] = ["--shard-rows", 24, "--max-new-tokens", 100, "--batch-size", 1, "--tune", "off"]
    whole, stopped = ([*("run", folders["llama"], rows, "-o", tmp_path / out), *job] for out in ("whole", "stopped"))
    assert forked(*whole).returncode == 0
    signs = (("_packhorse/manifest.json", signal.SIGINT, 130), ("part-000000.parquet", signal.SIGTERM, 143))
    for sign, signum, code in signs:
        process = forked_start(*stopped)
        wait_for(process, tmp_path / "stopped" / sign)
        time.sleep(0.2)
        process.send_signal(signum)
        _, said = process.communicate(timeout=DEADLINE_S)
        assert process.returncode == code, said
        assert f"stopped by signal {signum}" in said and "Traceback" not in said
        assert len(parts(tmp_path / "stopped")) < 2
    assert forked(*stopped).returncode == 0
    assert parts(tmp_path / "stopped") == parts(tmp_path / "whole")
