"""A crash at any step of an output in an object store, then the same again: the objects of an uninterrupted run."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pyarrow as pa
import pytest

import packhorse
from packhorse.errors import LockedError, OutputError, UsageError
from packhorse.outputs.disk import Disk
from packhorse.outputs.manifest import RunFolder
from packhorse.outputs.stores.lease import Timing
from packhorse.outputs.stores.objects import ObjectStore
from packhorse.remote import filesystem
from packhorse.writers import make_writer
from tests.null.test_manifest import SHARDS

QUICK = Timing(renew_s=0.05, expire_s=0.2, look_s=0.02, settle_s=0.0)


class CrashError(Exception):
    """The power goes."""


class CrashingFiles:
    """An fsspec file system that does `steps` changes and then fails: before the next one, or when it is done."""

    def __init__(self, fs: Any, steps: int, is_done: bool) -> None:
        self._fs, self.left, self._is_done = fs, steps, is_done

    def __getattr__(self, name: str) -> Any:
        return getattr(self._fs, name)

    def _change(self, name: str, path: str, *values: Any, **more: Any) -> Any:
        if path.endswith("/lock"):
            return getattr(self._fs, name)(path, *values, **more)
        self.left -= 1
        if self.left < 0 and not self._is_done:
            raise CrashError
        result = getattr(self._fs, name)(path, *values, **more)
        if self.left < 0:
            raise CrashError
        return result

    def pipe_file(self, path: str, data: bytes, **more: Any) -> Any:
        return self._change("pipe_file", path, data, **more)

    def put_file(self, local: str, path: str) -> Any:
        return self._change("put_file", local, path)

    def rm_file(self, path: str) -> Any:
        return self._change("rm_file", path)


def work(output: str, fs: Any, kind: str, timing: Timing = QUICK, disk: Disk | None = None) -> None:
    """What a job does with its run folder."""
    writer = make_writer(f".{kind}")
    is_file = not output.endswith("/")
    folder = RunFolder(output, is_file, ObjectStore(output, timing, disk, fs), writer.files)
    folder.check_is_ours(overwrite=False)
    folder.lock()
    try:
        if not folder.exists:
            folder.clear()
            folder.write_manifest({"plan": "all of it", "finished": False})
        if folder.manifest()["finished"]:
            return folder.check_finished(folder.manifest())
        folder.check_parts(folder.commits())
        for shard in SHARDS[len(folder.commits()) :]:
            rows = pa.table({"id": range(shard.first_row, shard.first_row + shard.num_rows)})
            folder.commit(shard, writer.extension, lambda paths, rows=rows: writer.write(rows, paths), {"rows": 10})
        folder.finish(30, folder.commits(), writer.assemble)
    finally:
        folder.unlock()
    return None


def memory() -> Any:
    return filesystem("memory://")[0]


def objects(root: str) -> dict[str, bytes]:
    fs, path = filesystem(root)
    return {name.removeprefix(path): fs.cat_file(name) for name in fs.find(path)}


def crashes(name: str, kind: str, is_done: bool) -> Iterator[str]:
    """An output for every step at which a run can crash, after it did."""
    for steps in range(100):
        root = f"memory://{uuid4().hex}"
        try:
            work(f"{root}/{name}", CrashingFiles(memory(), steps, is_done), kind)
        except CrashError:
            yield root
        else:
            assert steps >= 8
            return


@pytest.mark.parametrize("is_done", [False, True])
@pytest.mark.parametrize(("name", "kind"), [("out/", "parquet"), ("x.parquet", "parquet"), ("x.jsonl", "jsonl")])
def test_a_crash_at_any_step_can_be_continued(name: str, kind: str, is_done: bool) -> None:
    once = f"memory://{uuid4().hex}"
    work(f"{once}/{name}", memory(), kind)
    expected = objects(once)
    assert packhorse.verify(f"{once}/{name}").is_finished
    for root in crashes(name, kind, is_done):
        output = f"{root}/{name}"
        for key, data in objects(root).items():  # whatever is visible under its final name is final
            assert "manifest" in key or expected.get(key, data) == data
        work(output, memory(), kind)
        assert objects(root) == expected
        assert packhorse.verify(output).rows == 30


def test_a_run_that_lost_its_lock_commits_nothing() -> None:
    output = f"memory://{uuid4().hex}/out"
    fs, writer = memory(), make_writer(".parquet")
    folder = RunFolder(output, is_file=False, store=ObjectStore(output, QUICK))
    folder.lock()
    folder.write_manifest({"finished": False})
    fs.pipe_file(f"{output}/_packhorse/lock", b'{"host": "elsewhere", "pid": 7}')
    before = objects(output)
    with pytest.raises(LockedError, match="process 7 on elsewhere has taken over"):
        for shard in SHARDS * 1_000:
            folder.write_manifest({"finished": False})
            rows = pa.table({"id": [shard.index]})
    with pytest.raises(LockedError):
        folder.commit(SHARDS[0], ".parquet", lambda paths: writer.write(rows, paths), {})
    with pytest.raises(LockedError):
        folder.clear()
    folder.unlock()
    assert objects(output) == before


class SmallDisk(Disk):
    def free_bytes(self, folder: Path) -> int:
        return 1_000


def test_one_file_is_put_together_only_where_there_is_room() -> None:
    output = f"memory://{uuid4().hex}/x.parquet"
    with pytest.raises(OutputError, match="1,000 bytes are free"):
        work(output, memory(), "parquet", disk=SmallDisk())
    assert not memory().exists(output) and len(memory().ls(f"{output}.packhorse", detail=False)) == 4
    work(output, memory(), "parquet")
    assert packhorse.verify(output).is_finished


def test_nothing_stays_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    for crashing in (memory(), CrashingFiles(memory(), 5, is_done=False)):
        with contextlib.suppress(CrashError):
            work(f"memory://{uuid4().hex}/x.parquet", crashing, "parquet")
        assert list(tmp_path.iterdir()) == []


class SlowPuts:
    """A file system in which another run takes the output while a part is put."""

    def __init__(self, fs: Any, output: str) -> None:
        self._fs, self._output = fs, output

    def __getattr__(self, name: str) -> Any:
        return getattr(self._fs, name)

    def put_file(self, local: str, path: str) -> None:
        self._fs.put_file(local, path)
        self._fs.pipe_file(f"{self._output}/_packhorse/lock", b'{"host": "elsewhere", "pid": 7}')
        time.sleep(QUICK.expire_s)


def test_a_run_that_lost_its_lock_during_a_put_writes_no_record() -> None:
    output = f"memory://{uuid4().hex}/out"
    with pytest.raises(LockedError, match="process 7 on elsewhere has taken over"):
        work(f"{output}/", SlowPuts(memory(), output), "parquet")
    assert not [name for name in objects(output) if "/shards/" in name]


class RecordingPuts:
    """An S3 file system that remembers how it was asked to put."""

    protocol = ("s3",)

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []

    def put_file(self, local: str, path: str, **how: Any) -> None:
        self.asked.append(how)


def test_few_pieces_of_a_large_part_are_held_at_once(tmp_path: Path) -> None:
    pytest.importorskip("s3fs", reason="needs the package s3fs")
    (tmp_path / "part").write_bytes(b"rows")
    fs = RecordingPuts()
    ObjectStore("s3://bucket/out", fs=fs).publish(tmp_path / "part", "s3://bucket/out/part")
    assert fs.asked == [{"max_concurrency": 2}]  # s3fs has 10 of 50 MiB otherwise


def test_an_address_that_lost_a_slash_is_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="write s3://bucket/out, as a string"):
        packhorse.verify(Path("s3://bucket/out"))
    with pytest.raises(UsageError, match="write s3://bucket/out, as a string"):
        packhorse.run("no-model", pa.table({"text": ["a"]}), Path("s3://bucket/out"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("address", ["https://host/out/", "hf://datasets/org/name/out/", "sftp://host/out/"])
def test_an_output_goes_only_where_objects_appear_as_a_whole(address: str) -> None:
    with pytest.raises(UsageError, match=r"can only be read; write to a folder here, or to s3://"):
        ObjectStore(address)
