"""Outputs in a bucket that are mirrored, added to and retried: the objects of the same work on a disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa

import packhorse
from packhorse.errors import ChangedError
from tests.null.runs import run_until_stopped
from tests.null.stages import run_on_device
from tests.remote.conftest import Bucket
from tests.remote.jobs import parquet_bytes, texts

JOB: dict[str, Any] = {"shard_rows": 100, "text_column": "text"}
FILES = {"in/a.parquet": 150, "in/sub/b.parquet": 70, "in/sub/c.parquet": 0}


def put(folder: Path, bucket: Bucket, name: str, count: int) -> None:
    data = parquet_bytes(count, id=pa.array(range(count), pa.int64()))
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(data)
    bucket.put(name, data)


def on_disk(output: Path) -> dict[str, bytes]:
    files = [p for p in output.rglob("*") if p.is_file() and "_packhorse" not in p.parts]
    return {f"/{p.relative_to(output)}": p.read_bytes() for p in files}


def in_bucket(bucket: Bucket, output: str) -> dict[str, bytes]:
    return {name: data for name, data in bucket.objects(output).items() if "_packhorse" not in name}


def test_mirrored_and_added_to(null_model: Path, tmp_path: Path, bucket: Bucket) -> None:
    for name, count in FILES.items():
        put(tmp_path, bucket, name, count)
    job, address = JOB | {"mirror": True}, f"{bucket}/out"
    for step in range(2):
        stopped: Any = address
        assert run_until_stopped(null_model, f"{bucket}/in", stopped, 3, **job, append=True)
        assert not packhorse.verify(address).is_finished
        for rows, output in ((f"{bucket}/in", address), (tmp_path / "in", tmp_path / "out")):
            assert packhorse.run(null_model, rows, output, backend="null", **job, append=True).status == "finished"
        assert in_bucket(bucket, "out") == on_disk(tmp_path / "out")
        assert packhorse.verify(address).rows == 220 + 130 * step
        put(tmp_path, bucket, "in/sub/aa.parquet", 130)


def test_parts_added(null_model: Path, tmp_path: Path, bucket: Bucket) -> None:
    for name in ("in/b.parquet", "in/a.parquet"):
        put(tmp_path, bucket, name, 130)
        for rows, output in ((f"{bucket}/in", f"{bucket}/out"), (tmp_path / "in", tmp_path / "out")):
            packhorse.run(null_model, rows, output, backend="null", **JOB, append=True)
    assert in_bucket(bucket, "out") == on_disk(tmp_path / "out")
    put(tmp_path, bucket, "in/b.parquet", 131)
    try:
        packhorse.run(null_model, f"{bucket}/in", f"{bucket}/out", backend="null", **JOB, append=True)
    except ChangedError as error:
        assert "in/b.parquet has changed" in str(error)
    else:
        raise AssertionError("a file that changed went unnoticed")


def test_rows_retried(null_model: Path, tmp_path: Path, bucket: Bucket) -> None:
    rows = {"text": [*texts(150), *["very long and good " * 9] * 20, *texts(60)]}
    before = {}
    for output in (f"{bucket}/out", tmp_path / "out"):
        made: Any = output
        run_on_device(null_model, rows, made, 30, **JOB)
        before = in_bucket(bucket, "out")
        report = packhorse.run(null_model, rows, output, backend="null", **JOB, retry_errors=True)
        assert set(report.counters.errors) == {"null_text"}
        assert packhorse.verify(output).is_finished
    after = in_bucket(bucket, "out")
    assert after == on_disk(tmp_path / "out")
    assert not [key for key in bucket.keys("out") if "/retry/" in key]
    assert before["/part-000000.parquet"] == after["/part-000000.parquet"]
