"""Rows in from S3 and out to S3 over several processes, or actors of Ray: the objects of one process on a disk.

Only the coordinator speaks with the store, so workers and actors need neither its endpoint nor its credentials.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

import packhorse
from tests.cpu.command import COMMAND
from tests.null.devices import workers_of
from tests.null.runs import parts, run
from tests.remote.conftest import Bucket
from tests.remote.jobs import DEADLINE_S, parquet_bytes
from tests.remote.server import LocalS3
from tests.remote.test_jobs import KillAtPut

COUNT, SHARD_ROWS = 600, 50
JOB: dict[str, Any] = {"text_column": "text", "shard_rows": SHARD_ROWS, "max_batch_tokens": 400}
RAY = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0"}
DEADLY_PUT = 11  # after those of lock and manifest they are of parts and records


@pytest.fixture(scope="module")
def on_disk(null_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Parts and records of one process, none of which went through S3."""
    folder = tmp_path_factory.mktemp("on-disk")
    (folder / "rows.parquet").write_bytes(parquet_bytes(COUNT))
    run(null_model, folder / "rows.parquet", folder / "out", **JOB)
    records = (folder / "out" / "_packhorse" / "shards").glob("*.json")
    return parts(folder / "out") | {record.name: record.read_bytes() for record in records}


def in_s3(bucket: Bucket) -> dict[str, bytes]:
    """The same objects of an output there."""
    keys = [key for key in bucket.keys("out/") if "/part-" in key or "/shards/" in key]
    return {key.rpartition("/")[2]: bucket.get(key) for key in keys}


def test_two_devices_write_the_objects_of_one_process_on_a_disk(
    null_model: Path, bucket: Bucket, on_disk: dict[str, bytes]
) -> None:
    rows: Any = bucket.put("in/rows.parquet", parquet_bytes(COUNT))
    report = run(null_model, rows, f"{bucket}/out", devices="cpu:2", **JOB)  # type: ignore[arg-type]
    assert in_s3(bucket) == on_disk and len(on_disk) == 2 * COUNT // SHARD_ROWS
    assert sum(worker["shards"] for worker in report.workers) == COUNT // SHARD_ROWS
    assert packhorse.verify(f"{bucket}/out").is_finished and bucket.keys("out/_packhorse/lock") == []


@pytest.mark.slow
@pytest.mark.parametrize("is_done", [False, True], ids=["before the put", "after it"])
def test_a_coordinator_killed_at_a_put_goes_on_to_the_same_objects(
    null_model: Path, bucket: Bucket, server: LocalS3, on_disk: dict[str, bytes], is_done: bool
) -> None:
    rows = bucket.put("in/rows.parquet", parquet_bytes(COUNT))
    flags = ["--devices", "cpu:2", *(f"--{k.replace('_', '-')}={v}" for k, v in JOB.items()), "--backend", "null"]
    command = [*COMMAND, "run", str(null_model), rows, "-o", f"{bucket}/out", *flags]
    workers: list[psutil.Process] = []

    class Kill(KillAtPut):
        def _look(self, request: dict[str, Any]) -> None:
            if self.process is not None and not workers:
                workers.extend(workers_of(self.process.pid))
            super()._look(request)

    kill = Kill(server, DEADLY_PUT, is_done)
    kill.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    said = kill.process.communicate(timeout=DEADLINE_S)[1]
    server.look_freely()
    assert kill.process.returncode == -9, said
    assert len(workers) == 2 and not psutil.wait_procs(workers, timeout=20)[1]
    left = in_s3(bucket)
    assert 0 < len(left) < len(on_disk) and all(on_disk[name] == data for name, data in left.items())
    again = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE_S)
    assert again.returncode == 0 and "rows of an earlier run" in again.stderr, again.stderr
    assert in_s3(bucket) == on_disk and packhorse.verify(f"{bucket}/out").is_finished


@pytest.fixture
def ray(bucket: Bucket) -> Iterator[Any]:
    """Two cores of this machine, started by someone who knows nothing of the store."""
    ray = pytest.importorskip("ray", reason="ray is not installed: pip install 'packhorse[ray]'")
    is_ours = not ray.is_initialized()
    if is_ours:
        with pytest.MonkeyPatch.context() as patch:
            for name in [name for name in os.environ if name.startswith("AWS_") or name == "TMPDIR"]:
                patch.delenv(name)  # paths of Ray's sockets are to be short, too
            for name, value in RAY.items():
                patch.setenv(name, value)
            ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield ray
    if is_ours:
        ray.shutdown()


@pytest.mark.slow
def test_actors_of_ray_write_the_objects_of_one_process_on_a_disk(
    ray: Any, null_model: Path, bucket: Bucket, on_disk: dict[str, bytes]
) -> None:
    def seen() -> list[str]:
        return [name for name in os.environ if name.startswith(("AWS_ACCESS", "AWS_SECRET", "AWS_ENDPOINT"))]

    rows: Any = bucket.put("in/rows.parquet", parquet_bytes(COUNT))
    report = run(null_model, rows, f"{bucket}/out", ray="local", ray_workers=2, **JOB)  # type: ignore[arg-type]
    assert seen() and ray.get(ray.remote(seen).remote()) == []
    assert in_s3(bucket) == on_disk
    assert sum(worker["shards"] for worker in report.workers) == COUNT // SHARD_ROWS and len(report.workers) == 2
    assert packhorse.verify(f"{bucket}/out").is_finished and bucket.keys("out/_packhorse/lock") == []
