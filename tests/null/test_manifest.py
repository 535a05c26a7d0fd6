"""A crash at any step of writing, then the same again: the output is that of an uninterrupted run, to the byte."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

import packhorse
from packhorse.data import Position, Shard
from packhorse.errors import ChangedError, DamagedError, RefusedError
from packhorse.outputs.disk import Disk
from packhorse.outputs.manifest import RunFolder
from packhorse.outputs.records import Commit, check_unchanged, sealed, unsealed
from packhorse.outputs.stores.local import LocalStore
from packhorse.writers import make_writer
from tests.null.runs import parts, rows_of, run

SHARDS = [Shard(i, 10 * i, 10, Position(0, 10 * i), Position(0, 10 * i + 10)) for i in range(3)]


class CrashError(Exception):
    """The power goes."""


class CrashingDisk(Disk):
    """Does `steps` steps; the next write stops half way, the next fsync or rename does not happen at all."""

    def __init__(self, steps: int) -> None:
        self.left = steps

    def _is_last(self) -> bool:
        self.left -= 1
        return self.left < 0

    def write(self, path: Path, data: bytes) -> None:
        if self._is_last():
            super().write(path, data[: len(data) // 2])
            raise CrashError
        super().write(path, data)

    def fsync(self, path: Path) -> None:
        if self._is_last():
            raise CrashError
        super().fsync(path)

    def rename(self, source: Path, target: Path) -> None:
        if self._is_last():
            raise CrashError
        super().rename(source, target)


def work(output: Path, disk: Disk) -> None:
    """What a job does with its run folder."""
    folder = RunFolder(str(output), bool(output.suffix), LocalStore(disk))
    writer = make_writer(output.suffix or ".parquet")
    folder.check_is_ours(overwrite=False)
    folder.lock()
    try:
        if not folder.exists:
            folder.clear()
            folder.write_manifest({"plan": "all of it", "finished": False})
        if folder.manifest()["finished"]:
            return
        for shard in SHARDS[len(folder.commits()) :]:
            rows = pa.table({"id": range(shard.first_row, shard.first_row + shard.num_rows)})
            folder.commit(shard, writer.extension, partial(writer.write, rows), {"rows": 10})
        folder.finish(30, folder.commits(), writer.assemble)
    finally:
        folder.unlock()


def visible(output: Path) -> dict[str, bytes]:
    if output.suffix:
        return {output.name: output.read_bytes()} if output.exists() else {}
    return parts(output)


def crashes(output: Path) -> Iterator[Path]:
    """An output for every step at which a run can crash, after it did."""
    for steps in range(1_000):
        crashed = output.with_name(f"{output.stem}{steps}{output.suffix}")
        try:
            work(crashed, CrashingDisk(steps))
        except CrashError:
            yield crashed
        else:
            assert steps == 4 + 3 * 7 + 4 + 3 * bool(output.suffix)  # manifest, commits, manifest, the one file
            return


@pytest.mark.parametrize("name", ["folder", "whole.parquet", "whole.jsonl"])
def test_a_crash_at_any_step_leaves_only_final_files_and_can_be_continued(tmp_path: Path, name: str) -> None:
    expected = tmp_path / "uninterrupted" / name
    work(expected, Disk())
    for output in crashes(tmp_path / name):
        assert set(visible(output).values()) <= set(visible(expected).values())
        state = RunFolder(str(output), bool(output.suffix))
        committed = len(state.commits())
        if state.exists:
            found = packhorse.verify(output)
            assert (found.rows, found.is_finished) == (10 * committed, bool(state.manifest()["finished"]))
        work(output, Disk())
        assert list(visible(output).values()) == list(visible(expected).values())
        assert [row["id"] for row in rows_of(output)] == list(range(30))
        assert packhorse.verify(output).is_finished


def test_crash_upon_crash_ends_with_the_same_bytes(tmp_path: Path) -> None:
    work(tmp_path / "once", Disk())
    output, tries = tmp_path / "often", 0
    while True:
        try:
            work(output, CrashingDisk(8))  # a step more than a commit takes
        except CrashError:
            tries += 1
            assert tries < 50
        else:
            break
    assert tries > 2 and visible(output) == visible(tmp_path / "once")


def test_a_report_that_could_not_be_written_is_written_by_the_next_run(null_model: Path, tmp_path: Path) -> None:
    blocked = tmp_path / "out/_packhorse/report.json.tmp"
    blocked.mkdir(parents=True)
    with pytest.raises(OSError):
        run(null_model, {"text": ["good"]}, tmp_path / "out")
    blocked.rmdir()
    run(null_model, {"text": ["good"]}, tmp_path / "out")
    assert (tmp_path / "out/_packhorse/report.json").is_file()


def test_records_after_a_gap_do_not_count(tmp_path: Path) -> None:
    work(tmp_path / "out", Disk())
    folder = RunFolder(str(tmp_path / "out"), is_file=False)
    assert [c.shard for c in folder.commits()] == SHARDS
    Path(folder.state, "shards", "000001.json").unlink()
    assert [c.shard for c in folder.commits()] == SHARDS[:1]


def test_a_record_says_again_what_was_committed() -> None:
    commit = Commit(SHARDS[1], "part-000001.parquet", 123, "ab" * 32, {"rows": 10, "errors": {"null_text": 2}})
    assert Commit.from_json(commit.to_json()) == commit


def test_a_manifest_of_a_newer_format_is_refused(tmp_path: Path) -> None:
    work(tmp_path / "out", Disk())
    path = tmp_path / "out/_packhorse/manifest.json"
    path.write_bytes(sealed(unsealed(path.read_bytes()) | {"format": 2}))
    with pytest.raises(RefusedError, match="format 2; this version reads format 1"):
        packhorse.verify(tmp_path / "out")
    path.write_bytes(path.read_bytes().replace(b'"format": 2', b'"format": 1'))
    with pytest.raises(DamagedError, match="checksum"):
        packhorse.verify(tmp_path / "out")


@pytest.mark.parametrize(
    ("then", "now", "lines"),
    [
        ({"limit": None}, {"limit": 3}, ["settings.limit: null then, 3 now"]),
        ({"keep": ["a", "b"]}, {"keep": ["a", "c"]}, ['settings.keep[1]: "b" then, "c" now']),
        ({"keep": ["a"]}, {"keep": ["a", "c"]}, ['settings.keep: ["a"] then, ["a", "c"] now']),
        ({"a": 1}, {"b": 1}, ["settings.a: 1 then, null now", "settings.b: null then, 1 now"]),
        ({"x": {"y": {"z": 1}}}, {"x": {"y": {"z": 2}}}, ["settings.x.y.z: 1 then, 2 now"]),
        ({"prompt": "a" * 500}, {"prompt": "b"}, ['settings.prompt: "aaa', 'a... then, "b" now']),
    ],
)
def test_what_differs_is_listed(then: dict[str, Any], now: dict[str, Any], lines: list[str]) -> None:
    check_unchanged({"settings": then}, {"settings": then})
    with pytest.raises(ChangedError) as caught:
        check_unchanged({"settings": then}, {"settings": now})
    assert all(line in str(caught.value) for line in lines) and len(str(caught.value)) < 400


def test_many_differences_are_listed_in_part() -> None:
    then, now = ({f"file{i}": value for i in range(100)} for value in (1, 2))
    with pytest.raises(ChangedError) as caught:
        check_unchanged({"model": then}, {"model": now})
    assert str(caught.value).count(" then, ") == 12
