"""Rows in from S3 and out to S3: killed at any put and run again, the objects are those of an uninterrupted run."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from pyarrow import fs

import packhorse
from packhorse.errors import DamagedError, LockedError, OutputError, PackhorseError, UsageError
from tests.fork_server import Forked
from tests.null.reference import predicted, predictions
from tests.null.runs import run
from tests.remote.conftest import SECRET, Bucket
from tests.remote.jobs import DEADLINE_S, finished, jsonl_bytes, parquet_bytes, started, texts
from tests.remote.server import LocalS3, RefusedRequestError

COUNT = 600  # 6 shards: 100 rows each
FORMATS: dict[str, Callable[[int], bytes]] = {"parquet": parquet_bytes, "jsonl": jsonl_bytes}


@pytest.fixture(scope="module")
def reference(null_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, bytes]]:
    """The same outputs on a disk, from the same rows on a disk: nothing of them went through S3."""
    folder = tmp_path_factory.mktemp("reference")
    (folder / "rows.parquet").write_bytes(parquet_bytes(COUNT))
    found = {}
    for name in ("out", "out.parquet"):
        run(null_model, folder / "rows.parquet", folder / name, shard_rows=100, text_column="text")
        files = sorted((folder / name).glob("part-*")) if name == "out" else [folder / name]
        found[name] = {f.name: f.read_bytes() for f in files}
    return found


@pytest.mark.parametrize("kind", FORMATS)
def test_rows_come_from_s3_and_go_there(null_model: Path, bucket: Bucket, kind: str) -> None:
    rows = bucket.put(f"in/rows.{kind}", FORMATS[kind](COUNT))
    run(null_model, rows, f"{bucket}/out/", shard_rows=100, text_column="text")  # type: ignore[arg-type]
    store = fs.S3FileSystem(endpoint_override=os.environ["AWS_ENDPOINT_URL"])
    table = pq.read_table(f"{bucket.name}/out", filesystem=store)
    assert predicted(table.to_pylist()) == predictions(texts(COUNT))
    assert table["id"].to_pylist() == list(range(COUNT))
    found = packhorse.verify(f"{bucket}/out/")
    assert (found.rows, found.shards, found.is_finished) == (COUNT, 6, True)
    assert bucket.keys("out/_packhorse/lock") == []


@pytest.mark.parametrize("rows", ["in", "in/*.parquet"])
def test_a_folder_and_a_glob_in_s3_are_read_in_order(null_model: Path, bucket: Bucket, rows: str) -> None:
    for name in ("b.parquet", "a.parquet"):
        bucket.put(f"in/{name}", parquet_bytes(50, file=[name] * 50))
    run(null_model, f"{bucket}/{rows}", f"{bucket}/out.parquet")  # type: ignore[arg-type]
    table = pq.read_table(io.BytesIO(bucket.get("out.parquet")))
    assert table["file"].to_pylist() == ["a.parquet"] * 50 + ["b.parquet"] * 50
    assert predicted(table.to_pylist()) == predictions(texts(50) * 2)


class KillAtPut:
    """Kills a process at its n-th put of an object: before the server has it, or when it has but did not say so."""

    def __init__(self, server: LocalS3, at: int, is_done: bool) -> None:
        self.process: Forked | None = None
        self._left, self._at, self._is_done = at, at, is_done
        if is_done:
            server.after = self._look
        else:
            server.before = self._look

    def _look(self, request: dict[str, Any]) -> None:
        if request["REQUEST_METHOD"] != "PUT" or self.process is None:
            return
        self._left -= 1
        if self._left == 0:
            self.process.kill()
            self.process.wait()
            if not self._is_done:
                raise RefusedRequestError("500 Gone", "InternalError")


# puts of a run that begins: lock, manifest, then part and record of each shard; manifest, report, page
KILLS = [(1, True), (2, False), (2, True), (5, False), (4, True), (3, False), (2, True)]


@pytest.mark.parametrize("name", ["out", "out.parquet"])
def test_a_killed_run_goes_on_to_the_same_objects(
    null_model: Path, bucket: Bucket, server: LocalS3, reference: dict[str, dict[str, bytes]], name: str
) -> None:
    rows = bucket.put("in/rows.parquet", parquet_bytes(COUNT))
    once, often = f"{bucket}/once/{name}", f"{bucket}/often/{name}"
    finished(null_model, rows, once)
    expected = bucket.objects("once/")
    for at, is_done in [*KILLS, *([(2, True), (2, False), (2, True)] if name == "out.parquet" else [])]:
        kill = KillAtPut(server, at, is_done)
        kill.process = started(null_model, rows, often)
        kill.process.communicate(timeout=DEADLINE_S)
        server.look_freely()
        if kill.process.returncode == 0:
            break  # there was nothing left to put
        assert kill.process.returncode == -9
        visible = {k: v for k, v in bucket.objects("often/").items() if k == name or "/part-" in k}
        for key, data in visible.items():
            assert reference[name].get(key.rpartition("/")[2], data) == data
    finished(null_model, rows, often)
    assert bucket.objects("often/") == expected
    outputs = {k.rpartition("/")[2]: v for k, v in expected.items() if k == name or "/part-" in k}
    assert outputs == reference[name]
    assert packhorse.verify(often).is_finished and bucket.uploads() == []


def test_a_put_that_fails_leaves_what_can_be_gone_on_with(
    null_model: Path, bucket: Bucket, server: LocalS3, reference: dict[str, dict[str, bytes]]
) -> None:
    rows = bucket.put("in/rows.parquet", parquet_bytes(COUNT))

    def refuse(request: dict[str, Any]) -> None:
        if request["REQUEST_METHOD"] == "PUT" and "part-000002" in request["PATH_INFO"]:
            raise RefusedRequestError("403 Forbidden", "AccessDenied")

    server.before = refuse
    with pytest.raises(OutputError, match=r"part-000002\.parquet: cannot be written: no permission.* goes on"):
        run(null_model, rows, f"{bucket}/out", shard_rows=100, text_column="text")  # type: ignore[arg-type]
    there = bucket.keys("out/part-")  # later ones too: several are put at the same time
    assert there[:2] == ["out/part-000000.parquet", "out/part-000001.parquet"]
    assert "out/part-000002.parquet" not in there and packhorse.verify(f"{bucket}/out").shards == 2
    server.look_freely()
    run(null_model, rows, f"{bucket}/out", shard_rows=100, text_column="text")  # type: ignore[arg-type]
    assert {k: bucket.get(f"out/{k}") for k in reference["out"]} == reference["out"]


def test_a_read_that_breaks_off_is_an_error_with_the_files_name(
    null_model: Path, bucket: Bucket, server: LocalS3
) -> None:
    rows = bucket.put("in/rows.jsonl", jsonl_bytes(COUNT))
    gets = 0

    def refuse(request: dict[str, Any]) -> None:
        nonlocal gets
        is_of_rows = request["REQUEST_METHOD"] == "GET" and "rows.jsonl" in request["PATH_INFO"]
        gets += is_of_rows
        if is_of_rows and gets > 2:
            raise RefusedRequestError("403 Forbidden", "AccessDenied")

    server.before = refuse
    with pytest.raises(PackhorseError, match=r"rows\.jsonl"):
        run(null_model, rows, f"{bucket}/out", text_column="text")  # type: ignore[arg-type]
    server.look_freely()
    run(null_model, rows, f"{bucket}/out", text_column="text")  # type: ignore[arg-type]
    assert packhorse.verify(f"{bucket}/out").rows == COUNT


def test_pyarrows_own_client_does_the_same_where_s3fs_is_missing(null_model: Path, bucket: Bucket) -> None:
    for kind in FORMATS:
        rows = bucket.put(f"in/rows.{kind}", FORMATS[kind](COUNT))
        finished(null_model, rows, f"{bucket}/s3fs/{kind}/")
        said = finished(null_model, rows, f"{bucket}/pyarrow/{kind}/", ("s3fs",))
        assert "pip install s3fs" in said and "cannot create an object only where there is none" in said
        with_s3fs, without = (bucket.objects(f"{way}/{kind}/part-") for way in ("s3fs", "pyarrow"))
        assert with_s3fs == without and len(without) == 6
        assert packhorse.verify(f"{bucket}/pyarrow/{kind}").is_finished


def test_a_second_run_is_refused_while_one_works(null_model: Path, bucket: Bucket, server: LocalS3) -> None:
    rows = bucket.put("in/rows.parquet", parquet_bytes(COUNT))
    seen: list[str] = []

    def look(request: dict[str, Any]) -> None:
        if request["REQUEST_METHOD"] == "PUT" and "part-000003" in request["PATH_INFO"] and not seen:
            server.look_freely()
            server._one_at_a_time.release()  # the second run is to be answered while the first one waits for its put
            try:
                run(null_model, rows, f"{bucket}/out", shard_rows=100, text_column="text")  # type: ignore[arg-type]
            except LockedError as error:
                seen.append(str(error))
            finally:
                server._one_at_a_time.acquire()

    server.before = look
    finished(null_model, rows, f"{bucket}/out")
    assert len(seen) == 1 and "is working on this output" in seen[0]
    assert packhorse.verify(f"{bucket}/out").rows == COUNT


def test_verify_finds_what_is_not_as_committed(null_model: Path, bucket: Bucket) -> None:
    rows = bucket.put("in/rows.parquet", parquet_bytes(COUNT))
    run(null_model, rows, f"{bucket}/out", shard_rows=100, text_column="text")  # type: ignore[arg-type]
    good = bucket.get("out/part-000001.parquet")
    bucket.put("out/part-000001.parquet", good[:-1] + b"?")
    with pytest.raises(DamagedError, match=r"part-000001\.parquet: content differs"):
        packhorse.verify(f"{bucket}/out")
    bucket.client.delete_object(Bucket=bucket.name, Key="out/part-000001.parquet")
    with pytest.raises(DamagedError, match=r"part-000001\.parquet: missing"):
        packhorse.verify(f"{bucket}/out")
    with pytest.raises(UsageError, match="nothing to verify against"):
        packhorse.verify(f"{bucket}/in")


@pytest.mark.parametrize("overwrite", [False, True])
def test_input_and_output_are_kept_apart(null_model: Path, bucket: Bucket, overwrite: bool) -> None:
    rows = bucket.put("in/deep/rows.parquet", parquet_bytes(10))
    before = bucket.keys()
    for source, output in [
        (rows, f"{bucket}/in/deep/"),
        (rows, f"{bucket}/in/"),
        (rows, rows),
        (f"{bucket}/in", f"{bucket}/in/out"),
        (f"{bucket}/in/", f"{bucket}/in/out.parquet"),
    ]:
        with pytest.raises(PackhorseError):
            run(null_model, source, output, overwrite=overwrite)  # type: ignore[arg-type]
    assert bucket.keys() == before
    run(null_model, rows, f"{bucket}/in/deep2/")  # type: ignore[arg-type]  # a name that only begins alike


def test_what_is_not_ours_is_left_alone(null_model: Path, bucket: Bucket) -> None:
    bucket.put("out/thesis.tex", b"all of it")
    bucket.put("whole.parquet", b"of another run")
    for output, words in [("out/", r"thesis\.tex"), ("whole.parquet", "--overwrite")]:
        with pytest.raises(PackhorseError, match=words):
            run(null_model, {"text": ["good"]}, f"{bucket}/{output}")  # type: ignore[arg-type]
    assert sorted(bucket.keys()) == ["out/thesis.tex", "whole.parquet"]
    run(null_model, {"text": ["good"]}, f"{bucket}/whole.parquet", overwrite=True)  # type: ignore[arg-type]
    assert pq.read_table(io.BytesIO(bucket.get("whole.parquet"))).num_rows == 1


@pytest.mark.parametrize("output", ["s3://no-such-bucket-here/out/", "https://127.0.0.1/out/", "odd://x/out/"])
def test_an_output_that_cannot_be_written_is_named(null_model: Path, server: LocalS3, output: str) -> None:
    with pytest.raises(UsageError) as caught:
        run(null_model, {"text": ["good"]}, output)  # type: ignore[arg-type]
    assert output.rstrip("/") in str(caught.value)


def test_no_secret_is_written_anywhere(null_model: Path, bucket: Bucket, capsys: pytest.CaptureFixture) -> None:
    bucket.put("in/rows.parquet", parquet_bytes(10))
    signed = bucket.client.generate_presigned_url(
        "get_object", Params={"Bucket": bucket.name, "Key": "in/rows.parquet"}
    )
    secret = signed.partition("?")[2]
    run(null_model, signed, f"{bucket}/out/", progress="plain")
    run(null_model, signed, f"{bucket}/out/", progress="plain")
    written = b"".join(bucket.get(k) for k in bucket.keys("out/_packhorse")).decode()
    said = capsys.readouterr()
    for word in (secret, "Signature", SECRET):
        assert word not in written + said.out + said.err
