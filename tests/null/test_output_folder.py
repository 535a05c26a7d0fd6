"""What may be written where: nothing that is not ours is touched, and one process works at a time."""

from __future__ import annotations

import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from packhorse.errors import LockedError, PackhorseError, RefusedError, UsageError
from packhorse.outputs.manifest import RunFolder
from tests.null.reference import predicted, predictions
from tests.null.runs import rows_of, run

TEXTS = ["good", None, "the end"]
ROWS = {"text": TEXTS}


def save(path: Path, count: int = 3) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"text": TEXTS[:count]}), path)
    return path


@pytest.mark.parametrize("name", ["out", "out.parquet"])
def test_an_output_that_another_works_on_is_refused_with_its_holder(
    null_model: Path, tmp_path: Path, name: str
) -> None:
    holder = RunFolder(str(tmp_path / name), is_file=name.endswith(".parquet"))
    holder.lock()
    try:
        with pytest.raises(LockedError, match=rf"process {os.getpid()} on .* is working on this output"):
            run(null_model, ROWS, tmp_path / name)
    finally:
        holder.unlock()
    run(null_model, ROWS, tmp_path / name)
    assert predicted(rows_of(tmp_path / name)) == predictions(TEXTS)


def test_a_place_that_cannot_be_written_is_named(null_model: Path, tmp_path: Path) -> None:
    file = save(tmp_path / "file.parquet")
    with pytest.raises(UsageError, match=r"file.parquet/out: cannot be written: .*choose another output"):
        run(null_model, ROWS, file / "out")
    assert pq.read_table(file).num_rows == len(TEXTS)


def test_a_lock_whose_holder_died_is_void(null_model: Path, tmp_path: Path) -> None:
    state = tmp_path / "out" / "_packhorse"
    state.mkdir(parents=True)
    (state / "lock").write_text("process 1 on elsewhere")
    run(null_model, ROWS, tmp_path / "out")
    assert (state / "lock").read_text() == ""


def test_a_failed_run_gives_its_lock_back(null_model: Path, tmp_path: Path) -> None:
    with pytest.raises(PackhorseError):
        run(null_model, ROWS, tmp_path, on_error="fail")
    assert run(null_model, ROWS, tmp_path).status == "finished"


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_with_a_file_of_someone_else_is_refused(null_model: Path, tmp_path: Path, overwrite: bool) -> None:
    (tmp_path / "thesis.tex").write_text("all of it")
    with pytest.raises(RefusedError, match=r"thesis\.tex"):
        run(null_model, ROWS, tmp_path, overwrite=overwrite)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


def test_parts_of_an_unknown_run_are_replaced_only_when_told(null_model: Path, tmp_path: Path) -> None:
    save(tmp_path / "part-000007.parquet")
    with pytest.raises(RefusedError, match="--overwrite"):
        run(null_model, ROWS, tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["part-000007.parquet"]
    run(null_model, ROWS, tmp_path, overwrite=True)
    assert predicted(rows_of(tmp_path)) == predictions(TEXTS)


def test_a_file_of_an_unknown_run_is_replaced_only_when_told(null_model: Path, tmp_path: Path) -> None:
    before = save(tmp_path / "out.parquet").read_bytes()
    with pytest.raises(RefusedError, match="--overwrite"):
        run(null_model, ROWS, tmp_path / "out.parquet")
    assert (tmp_path / "out.parquet").read_bytes() == before
    run(null_model, ROWS, tmp_path / "out.parquet", overwrite=True)
    assert predicted(rows_of(tmp_path / "out.parquet")) == predictions(TEXTS)


def test_a_folder_named_like_a_file_is_refused(null_model: Path, tmp_path: Path) -> None:
    (tmp_path / "out.parquet").mkdir()
    for overwrite in (False, True):
        with pytest.raises(PackhorseError, match=r"out\.parquet"):
            run(null_model, ROWS, tmp_path / "out.parquet", overwrite=overwrite)


def test_a_slash_at_the_end_means_a_folder(null_model: Path, tmp_path: Path) -> None:
    run(null_model, ROWS, f"{tmp_path}/out.parquet/")  # type: ignore[arg-type]
    assert (tmp_path / "out.parquet" / "part-000000.parquet").is_file()


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("way", ["plain", "dots", "link", "link_to_input"])
def test_an_input_inside_the_output_is_refused_and_survives(
    null_model: Path, tmp_path: Path, way: str, overwrite: bool
) -> None:
    rows = save(tmp_path / "out" / "part-000000.parquet")
    before = rows.read_bytes()
    (tmp_path / "other").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "out")
    (tmp_path / "in.parquet").symlink_to(rows)
    output = {"dots": tmp_path / "other" / ".." / "out", "link": tmp_path / "link"}.get(way, tmp_path / "out")
    with pytest.raises(PackhorseError):
        run(null_model, tmp_path / "in.parquet" if way == "link_to_input" else rows, output, overwrite=overwrite)
    assert rows.read_bytes() == before


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("way", ["same", "dots", "link", "folder"])
def test_an_input_that_is_the_output_is_refused_and_survives(
    null_model: Path, tmp_path: Path, way: str, overwrite: bool
) -> None:
    rows = save(tmp_path / "in" / "rows.parquet")
    before = rows.read_bytes()
    (tmp_path / "link").symlink_to(tmp_path / "in")
    output = {"dots": tmp_path / "in" / ".." / "in", "link": tmp_path / "link"}.get(way, tmp_path / "in")
    with pytest.raises(PackhorseError):
        run(null_model, tmp_path / "in" if way == "folder" else rows, output / "rows.parquet", overwrite=overwrite)
    assert rows.read_bytes() == before


@pytest.mark.parametrize("name", ["scored", "scored.parquet"])
def test_an_output_inside_the_input_folder_is_refused_or_can_be_run_again(
    null_model: Path, tmp_path: Path, name: str
) -> None:
    save(tmp_path / "rows.parquet")
    try:
        run(null_model, tmp_path, tmp_path / name)
    except UsageError:
        return
    assert run(null_model, tmp_path, tmp_path / name).status == "already_finished"


def test_a_run_that_cannot_begin_leaves_no_output(null_model: Path, tmp_path: Path) -> None:
    with pytest.raises(PackhorseError):
        run(null_model, tmp_path / "nothing.parquet", tmp_path / "out")
    assert not (tmp_path / "out").exists()
