"""--ray: the bytes of one process, whatever dies on the way."""

from __future__ import annotations

import contextlib
import hashlib
import random
import re
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import packhorse
from packhorse.errors import UsageError, WorkerDiedError
from tests.cluster.conftest import ONE_THREAD
from tests.cpu.command import COMMAND, ENVIRONMENT
from tests.models import WORDS

KILLS = 10
DEADLINE_S = 240.0
SHARDS = 60
JOB: dict[str, Any] = {"text_column": "text", "tune": "off"}
ON_RAY = {"ray": "local", "devices": "cpu:2"}


def write_rows(path: Path, count: int, words: int) -> Path:
    draw = random.Random(0)
    texts = [" ".join(draw.choices(WORDS, k=draw.randint(0, words))) for _ in range(count)]
    table = {"id": range(count), "text": [None if i % 97 == 0 else text for i, text in enumerate(texts)]}
    pq.write_table(pa.table(table), path, row_group_size=count // 7)
    return path


def digest(folder: Path) -> dict[str, str]:
    """sha256 of the parts and of their records: the counters in them too are those of one process."""
    files = [*folder.glob("part-*"), *(folder / "_packhorse" / "shards").glob("*.json")]
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def actors() -> list[psutil.Process]:
    """Worker processes that this one, or its cluster, started (Ray Data's own actors have longer names)."""
    named = [(process, (process.info["cmdline"] or [""])[0]) for process in psutil.process_iter(["cmdline"])]
    return [process for process, name in named if re.match(r"ray::Actor\b", name)]


@pytest.fixture
def null_job(null_model: Path, tmp_path: Path) -> dict[str, Any]:
    rows = write_rows(tmp_path / "rows.parquet", SHARDS * 100, 30)
    return JOB | {"model": null_model, "input": rows, "backend": "null", "shard_rows": 100}


@pytest.fixture
def torch_job(classifier: Path, tmp_path: Path) -> dict[str, Any]:
    rows = write_rows(tmp_path / "rows.parquet", 2_400, 60)
    return JOB | {"model": classifier, "input": rows, "shard_rows": 40, "max_batch_tokens": 256}


@pytest.mark.parametrize("kind", ["null_job", "torch_job"])
def test_the_output_is_that_of_one_process(ray: Any, kind: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    job = request.getfixturevalue(kind)
    packhorse.run(**job, output=tmp_path / "one")
    report = packhorse.run(**job, **ON_RAY, output=tmp_path / "ray")
    assert digest(tmp_path / "ray") == digest(tmp_path / "one") and report.shards == SHARDS
    assert sum(worker["shards"] for worker in report.workers) == SHARDS and len(report.workers) == 2
    assert packhorse.verify(tmp_path / "ray").is_finished
    assert not actors_left()


def actors_left() -> list[psutil.Process]:
    end = time.monotonic() + 30
    while (left := actors()) and time.monotonic() < end:
        time.sleep(0.1)
    return left


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["null_job", "torch_job"])
def test_actors_killed_at_random(ray: Any, kind: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    job = request.getfixturevalue(kind)
    packhorse.run(**job, output=tmp_path / "one")
    expected, deadline, killed, runs = digest(tmp_path / "one"), time.monotonic() + DEADLINE_S, 0, 0
    draw = random.Random(3)
    while killed < KILLS:
        assert time.monotonic() < deadline, f"{killed} kills in {runs} runs: too slow, or hanging"
        output = tmp_path / f"run{runs}"
        # Chance may kill two workers in a row with one shard, which ends a job: the same call goes on.
        with killing(output, KILLS - killed, draw) as dead, contextlib.suppress(WorkerDiedError):
            packhorse.run(**job, **ON_RAY, output=output)
        packhorse.run(**job, **ON_RAY, output=output)
        killed, runs = killed + len(dead), runs + 1
        assert digest(output) == expected
        assert packhorse.verify(output).is_finished


@contextlib.contextmanager
def killing(output: Path, most: int, draw: random.Random) -> Iterator[list[int]]:
    """Kills actors while the block runs, each some commits after the one before: the job is to go on meanwhile."""
    dead: list[int] = []
    over = threading.Event()

    def kill() -> None:
        wanted = 1
        while len(dead) < most and not over.wait(0.005):
            alive = [p for p in actors() if p.pid not in dead]
            if alive and num_records(output) >= wanted:
                victim = draw.choice(alive)
                with contextlib.suppress(psutil.NoSuchProcess):
                    victim.kill()
                    dead.append(victim.pid)
                    wanted = num_records(output) + draw.randint(2, 6)

    thread = threading.Thread(target=kill)
    thread.start()
    try:
        yield dead
    finally:
        over.set()
        thread.join()


def num_records(output: Path) -> int:
    return len(list((output / "_packhorse" / "shards").glob("*.json")))


@pytest.mark.slow
def test_a_killed_driver_goes_on_to_the_same_bytes(null_model: Path, null_job: dict[str, Any], tmp_path: Path) -> None:
    packhorse.run(**null_job, output=tmp_path / "one")
    flags = [
        "--text-column",
        "text",
        "--backend",
        "null",
        "--shard-rows",
        "100",
        "--ray",
        "local",
        "--devices",
        "cpu:2",
    ]
    command = [*COMMAND, "run", str(null_model), str(null_job["input"]), "-o", str(tmp_path / "ray"), *flags]
    environment = ENVIRONMENT | ONE_THREAD
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + DEADLINE_S
    while num_records(tmp_path / "ray") < 3:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.002)
    process.kill()
    process.communicate()
    assert 3 <= num_records(tmp_path / "ray") < SHARDS and process.returncode == -signal.SIGKILL
    assert not actors_left()
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=DEADLINE_S)
    assert done.returncode == 0, done.stderr
    assert "going on after" in done.stderr
    assert digest(tmp_path / "ray") == digest(tmp_path / "one")


def test_a_pipe_to_an_actor_that_is_gone_is_closed(ray: Any) -> None:
    from packhorse.executors.ray import ActorPipe

    class Dead:
        class take:
            remote = staticmethod(lambda: ray.remote(ends).options(max_retries=0).remote())

    def ends() -> None:
        raise MemoryError

    pipe = ActorPipe(ray, Dead)
    with pytest.raises(EOFError, match="is gone"):
        pipe.poll(60)


def test_no_cluster_at_the_address_is_a_usage_error(tmp_path: Path, null_model: Path) -> None:
    pytest.importorskip("ray")
    code = f"import packhorse; packhorse.run({str(null_model)!r}, {{'text': ['a']}}, {str(tmp_path / 'out')!r}, "
    code += "backend='null', ray='no-port')"
    done = subprocess.run([COMMAND[0], "-c", code], env=ENVIRONMENT, capture_output=True, text=True, timeout=DEADLINE_S)
    assert "UsageError: --ray no-port: no cluster there" in done.stderr


def test_ray_workers_goes_with_ray(tmp_path: Path, null_model: Path) -> None:
    with pytest.raises(UsageError, match="--ray-workers 2"):
        packhorse.run(null_model, {"text": ["a"]}, tmp_path, backend="null", ray_workers=2)
