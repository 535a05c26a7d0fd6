"""Several commits at the same time in an object store: cut off anywhere and run again, the objects are those of an
uninterrupted run, and at no moment is a record there without the part that it tells of."""

from __future__ import annotations

import hashlib
import random
import threading
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

import packhorse
from packhorse.data import Position, Shard
from packhorse.errors import OutputError
from packhorse.outputs import committing
from packhorse.outputs.committing import Committing
from packhorse.outputs.manifest import RunFolder
from packhorse.outputs.records import Commit
from packhorse.outputs.stores import objects as objects_module
from packhorse.outputs.stores.lease import Timing
from packhorse.outputs.stores.objects import COMMITS, ObjectStore
from packhorse.remote import filesystem
from tests.null.devices import texts
from tests.null.runs import run

COUNT = 20
SHARDS = [Shard(i, 10 * i, 10, Position(0, 10 * i), Position(0, 10 * i + 10)) for i in range(COUNT)]
QUICK = Timing(renew_s=5.0, expire_s=60.0, look_s=0.02, settle_s=0.0)


class CutOffError(Exception):
    """Nothing that the process does has an effect any more, as after kill -9."""


class SlowFiles:
    """A file system in memory whose puts take 0 to 3 ms, so that they end in any order, and of which only the first
    `left` have an effect."""

    def __init__(self, left: int = 1_000, seed: int = 0) -> None:
        self._fs, self._draw, self._counting = filesystem("memory://")[0], random.Random(seed), threading.Lock()
        self.left, self.now, self.most = left, 0, 0  # now, most: puts at the same time

    def __getattr__(self, name: str) -> Any:
        return getattr(self._fs, name)

    def _change(self, name: str, *values: Any) -> None:
        with self._counting:
            seconds, self.now = self._draw.uniform(0, 0.003), self.now + 1
            self.most = max(self.most, self.now)
        time.sleep(seconds)
        with self._counting:
            self.now, self.left = self.now - 1, self.left - 1
            if self.left < 0:
                raise CutOffError
            getattr(self._fs, name)(*values)

    def pipe_file(self, path: str, data: bytes) -> None:
        self._change("pipe_file", path, data)

    def put_file(self, local: str, path: str) -> None:
        self._change("put_file", local, path)

    def rm_file(self, path: str) -> None:
        self._change("rm_file", path)


def opened(output: str, files: SlowFiles) -> RunFolder:
    return RunFolder(output, is_file=False, store=ObjectStore(output, QUICK, fs=files))


def work(output: str, files: SlowFiles, version: int = 0) -> list[int]:
    """What a job does with its run folder; the shards that it was told of. version: makes other parts."""
    folder = opened(output, files)
    told: list[int] = []
    try:
        if not folder.exists:
            folder.write_manifest({"finished": False})
        commits = folder.commits()
        folder.check_parts(commits)
        folder.drop_records_after(commits)
        with Committing(folder) as both:
            for shard in SHARDS[len(commits) :]:
                content = f"{shard.index} in version {version}" * (1 + version)

                def write(paths: list[str], content: str = content) -> None:
                    Path(paths[0]).write_text(content)

                made = folder.written(shard, ".jsonl", write, {"rows": 10}, ())
                both.add(*made, partial(told.append, shard.index))
            both.end()
        folder.finish(10 * COUNT, folder.commits(), lambda parts, paths: None)
    finally:
        folder.unlock()
    return told


def objects(root: str) -> dict[str, bytes]:
    fs, path = filesystem(root)
    return {name.removeprefix(path): fs.cat_file(name) for name in fs.find(path)}


def check_records(output: str) -> list[Commit]:
    """Each record has its part, to the byte; those of the first shards without a gap."""
    there, folder = objects(output), opened(output, SlowFiles())
    for name, data in there.items():
        if "/shards/" in name:
            commit = Commit.from_json(data)
            assert hashlib.sha256(there[f"/{commit.part}"]).hexdigest() == commit.sha256, commit.part
    return folder.commits()


@pytest.fixture(scope="module")
def expected() -> dict[str, bytes]:
    output = f"memory://{uuid4().hex}/out"
    assert work(output, SlowFiles()) == list(range(COUNT))
    return objects(output)


@pytest.mark.parametrize("seed", range(3))
def test_cut_off_anywhere_it_goes_on_to_the_same_objects(expected: dict[str, bytes], seed: int) -> None:
    gaps = 0
    for left in range(seed, 2 * COUNT + 2, 3):
        output = f"memory://{uuid4().hex}/out"
        with pytest.raises(CutOffError):
            work(output, SlowFiles(left, seed))
        commits = check_records(output)
        num_records = sum("/shards/" in name for name in objects(output))
        gaps += num_records > len(commits)
        if left:
            found = packhorse.verify(output)
            assert (found.shards, found.is_finished) == (len(commits), False)
        assert work(output, SlowFiles(seed=left)) == list(range(len(commits), COUNT))
        assert objects(output) == expected and packhorse.verify(output).rows == 10 * COUNT
    assert gaps  # else this test shows nothing


def test_parts_behind_a_gap_may_have_other_bytes_afterwards() -> None:
    """Under a budget that was lowered meanwhile: their records go before their parts are replaced."""
    gaps = 0
    for left in range(4, 2 * COUNT, 2):
        output = f"memory://{uuid4().hex}/out"
        with pytest.raises(CutOffError):
            work(output, SlowFiles(left, left))
        first = len(check_records(output))
        gaps += sum("/shards/" in name for name in objects(output)) > first
        with pytest.raises(CutOffError):
            work(output, SlowFiles(min(left // 2, COUNT - first), seed=1), version=1)
        check_records(output)
        work(output, SlowFiles(seed=2), version=1)
        written = [b"version 1" in data for name, data in sorted(objects(output).items()) if "/part-" in name]
        assert written == [False] * first + [True] * (COUNT - first)
        assert packhorse.verify(output).is_finished
    assert gaps


def test_few_are_put_at_the_same_time_and_fewer_where_they_are_large(monkeypatch: pytest.MonkeyPatch) -> None:
    files = SlowFiles()
    work(f"memory://{uuid4().hex}/out", files)
    assert 1 < files.most <= COMMITS
    monkeypatch.setattr(committing, "MAX_BYTES", 5)
    alone = SlowFiles()
    work(f"memory://{uuid4().hex}/out", alone)
    assert alone.most == 1


def test_a_put_that_fails_ends_the_job_when_its_turn_comes_and_the_others_end_first() -> None:
    output, files = f"memory://{uuid4().hex}/out", SlowFiles()
    folder = opened(output, files)
    told: list[int] = []
    make_final = folder.make_final

    def failing(commit: Commit, temporaries: Mapping[str, Path]) -> None:
        if commit.shard.index == 2:
            raise OutputError("no permission")
        time.sleep(0.05)
        make_final(commit, temporaries)

    folder.make_final = failing  # type: ignore[method-assign]
    with pytest.raises(OutputError, match="no permission"), Committing(folder) as both:
        for shard in SHARDS[:6]:
            made = folder.written(shard, ".jsonl", lambda paths: Path(paths[0]).touch(), {"rows": 10}, ())
            both.add(*made, partial(told.append, shard.index))
        both.end()
    assert told == [0, 1] and [c.shard.index for c in check_records(output)] == [0, 1]
    assert files.now == 0 and sum("/shards/" in name for name in objects(output)) == 5


def test_a_job_counts_what_it_committed(null_model: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(objects_module, "Timing", lambda: QUICK)
    rows, job = {"text": texts(800)}, {"text_column": "text", "shard_rows": 40}
    alone = run(null_model, rows, tmp_path / "out", **job)
    output, publish = f"memory://{uuid4().hex}/out", ObjectStore.publish

    def failing(self: ObjectStore, temporary: Path, path: str) -> None:
        time.sleep(0.01)
        if "part-000007" in path:
            raise OutputError("no room")
        publish(self, temporary, path)

    with monkeypatch.context() as patch:
        patch.setattr(ObjectStore, "publish", failing)
        with pytest.raises(OutputError, match="no room"):
            run(null_model, rows, output, **job)  # type: ignore[arg-type]
    assert packhorse.verify(output).shards == 7
    report = run(null_model, rows, output, **job)  # type: ignore[arg-type]
    assert report.counters.deterministic() == alone.counters.deterministic()
    assert (report.rows, report.this_run.rows, report.shards) == (800, 800 - 7 * 40, 20)
    parts = {name: data for name, data in objects(output).items() if name.startswith("/part-")}
    assert parts == {f"/{part.name}": part.read_bytes() for part in (tmp_path / "out").glob("part-*")}
    assert packhorse.verify(output).is_finished
