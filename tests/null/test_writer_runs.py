"""Whole runs in every output format: stopped and resumed, crashed, verified, replaced, refused."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import packhorse
from packhorse.errors import ChangedError, DamagedError, OutputError, PackhorseError, RefusedError, UsageError
from packhorse.outputs.disk import Disk
from tests.contracts.csv_rows import texts_of_csv
from tests.null.reference import checksum, some_texts
from tests.null.runs import run, run_until_stopped, strict_lines

TEXTS = some_texts(120)
ROWS = pa.table({"id": range(120), "text": TEXTS})
WIDTH = 32  # of the null model
JOB: dict[str, Any] = {"text_column": "text", "shard_rows": 25, "max_batch_tokens": 400}
EMBED = JOB | {"task": "feature-extraction"}
OUTPUTS = [
    ("folder", "jsonl", JOB),
    ("folder", "csv", JOB),
    ("folder", "npy", EMBED | {"embedding_format": "int8"}),
    ("whole.csv", "auto", EMBED | {"embedding_format": "int8"}),
    ("whole.npy", "npy", EMBED),
    ("whole.npy", "auto", EMBED | {"embedding_format": "ubinary"}),
]
every_output = pytest.mark.parametrize(("name", "kind", "job"), OUTPUTS)


def shown(output: Path) -> dict[str, bytes]:
    """All that a user sees of an output: what lies beside the bookkeeping."""
    files = output.iterdir() if output.is_dir() else output.parent.glob(f"{output.name}*")
    return {p.name: p.read_bytes() for p in files if p.is_file()}


def records(output: Path) -> dict[str, bytes]:
    root = output if output.is_dir() else output.with_name(output.name + ".packhorse")
    return {p.name: p.read_bytes() for p in (root / "_packhorse/shards").glob("*.json")}


@every_output
def test_a_stopped_run_goes_on_to_the_same_bytes(
    null_model: Path, tmp_path: Path, name: str, kind: str, job: dict[str, Any]
) -> None:
    job = job | {"output_format": kind}
    run(null_model, ROWS, tmp_path / "once" / name, **job)
    stopped_at = set()
    for looks in range(0, 24, 4):
        output = tmp_path / f"{looks}" / name
        if run_until_stopped(null_model, ROWS, output, looks, **job):
            stopped_at.add(len(records(output)))
            assert run(null_model, ROWS, output, **job).rows == 120
        assert shown(output) == shown(tmp_path / "once" / name)
        assert records(output) == records(tmp_path / "once" / name)
        assert packhorse.verify(output).is_finished
        assert run(null_model, ROWS, output, **job).status == "already_finished"
    assert len(stopped_at) > 2


def expected_vectors() -> np.ndarray:
    """[120, 32] worked out with Python integers; NaN where there is no text."""
    from tests.models import word_piece_tokenizer

    tokenizer = word_piece_tokenizer()
    tokenizer.enable_truncation(64)
    rows = []
    for text in TEXTS:
        encoding = None if text is None else tokenizer.encode(text)
        rows.append([np.nan] * WIDTH if encoding is None else checksum(encoding.ids, encoding.type_ids, WIDTH))
    return np.array(rows, np.float32)


def test_arrays_of_a_run(null_model: Path, tmp_path: Path) -> None:
    run(null_model, ROWS, tmp_path / "x.npy", **EMBED)
    run(null_model, ROWS, tmp_path / "out", output_format="npy", **EMBED)
    expected = expected_vectors()
    np.testing.assert_array_equal(np.load(tmp_path / "x.npy", mmap_mode="r"), expected)
    parts = [np.load(p, mmap_mode="r") for p in sorted((tmp_path / "out").glob("_part-*.npy"))]
    assert [len(part) for part in parts] == [25, 25, 25, 25, 20]
    np.testing.assert_array_equal(np.concatenate(parts), expected)
    for columns in (pq.read_table(tmp_path / "x.npy.parquet"), pq.read_table(tmp_path / "out")):
        assert columns.select(["id", "text"]).to_pylist() == ROWS.to_pylist()
        assert [e and e["kind"] for e in columns["error"].to_pylist()] == [
            "null_text" if t is None else None for t in TEXTS
        ]


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_rows_of_a_run_are_those_of_parquet(null_model: Path, tmp_path: Path, kind: str) -> None:
    run(null_model, ROWS, tmp_path / "out", **JOB)
    run(null_model, ROWS, tmp_path / f"x.{kind}", **JOB)
    wanted = pq.read_table(tmp_path / "out").to_pylist()
    if kind == "jsonl":
        found: list[dict[str, Any]] = strict_lines(tmp_path / "x.jsonl")
    else:
        found = [dict(row) for row in texts_of_csv(tmp_path / "x.csv")]
        assert [row["id"] for row in found] == [str(i) for i in range(120)]
    assert [(r["text"], r["label"]) for r in found] == [(r["text"], r["label"]) for r in wanted]
    assert [r["score"] and np.float32(r["score"]) for r in found] == [r["score"] for r in wanted]
    assert [r["error"] is None for r in found] == [r["error"] is None for r in wanted]


@pytest.mark.parametrize(("name", "kind"), [("x.npy", "auto"), ("x.csv", "auto"), ("out", "npy"), ("out", "csv")])
def test_no_rows(null_model: Path, tmp_path: Path, name: str, kind: str) -> None:
    run(null_model, ROWS.slice(0, 0), tmp_path / name, output_format=kind, **EMBED)
    assert packhorse.verify(tmp_path / name).rows == 0
    for array in tmp_path.rglob("*.npy"):
        assert np.load(array).shape == (0, WIDTH)
    for text in tmp_path.rglob("*.csv"):
        assert text.read_bytes() == b"id,text,embedding,error\n"


# -- both files of a part, or of x.npy, are answered for


@pytest.mark.parametrize("name", ["out", "x.npy"])
@pytest.mark.parametrize("is_finished", [True, False])
def test_damage_to_any_file_is_found_by_name(null_model: Path, tmp_path: Path, name: str, is_finished: bool) -> None:
    output, job = tmp_path / name, EMBED | {"output_format": "npy"}
    if is_finished:
        run(null_model, ROWS, output, **job)
        files = [output / n for n in shown(output)] if output.is_dir() else [output, tmp_path / "x.npy.parquet"]
    else:
        assert run_until_stopped(null_model, ROWS, output, 12, **job)
        root = output if output.is_dir() else tmp_path / "x.npy.packhorse"
        files = [p for p in root.iterdir() if p.is_file()]
    assert len(files) >= 2 and len({f.suffix for f in files}) == 2
    assert packhorse.verify(output).num_bytes == sum(f.stat().st_size for f in files)
    for file in files:
        good = file.read_bytes()
        for bad in (good[:-1], good[:-9] + bytes([good[-9] ^ 1]) + good[-8:], None):
            file.unlink() if bad is None else file.write_bytes(bad)
            with pytest.raises(DamagedError, match=file.name):
                packhorse.verify(output)
            if bad is None or len(bad) < len(good):
                with pytest.raises(DamagedError, match=file.name):
                    run(null_model, ROWS, output, **job)
        file.write_bytes(good)
    assert run(null_model, ROWS, output, **job).rows == 120


def test_an_array_that_no_record_knows_is_found(null_model: Path, tmp_path: Path) -> None:
    run(null_model, ROWS, tmp_path, output_format="npy", **EMBED)
    shutil.copy(tmp_path / "_part-000001.npy", tmp_path / "_part-000009.npy")
    with pytest.raises(DamagedError, match=r"_part-000009\.npy: no record knows this part"):
        packhorse.verify(tmp_path)


class CrashError(Exception):
    """The power goes."""


def test_a_crash_at_any_step_leaves_nothing_that_is_not_continued(
    null_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two files a part, and two in the end."""
    name = "x.npy"
    rows, job = ROWS.slice(0, 50), EMBED | {"output_format": "npy"}
    run(null_model, rows, tmp_path / "once" / name, **job)
    fsync, rename = Disk.fsync, Disk.rename
    for steps in range(100):
        left = [steps]

        def limited(step: Any, left: list[int] = left) -> Any:
            def stopped(*arguments: Any) -> None:
                left[0] -= 1
                if left[0] < 0:
                    raise CrashError
                step(*arguments)

            return stopped

        output = tmp_path / f"{steps}" / name
        monkeypatch.setattr(Disk, "fsync", limited(fsync))
        monkeypatch.setattr(Disk, "rename", limited(rename))
        try:
            run(null_model, rows, output, **job)
            break
        except CrashError:
            pass
        finally:
            monkeypatch.undo()
        assert run(null_model, rows, output, **job).rows == 50
        assert shown(output) == shown(tmp_path / "once" / name)
        assert packhorse.verify(output).is_finished
    assert 20 < steps < 99


# -- what is replaced and what is refused


def test_overwrite_replaces_every_file_of_another_format(null_model: Path, tmp_path: Path) -> None:
    run(null_model, ROWS, tmp_path / "out", output_format="npy", **EMBED)
    with pytest.raises(ChangedError, match='output_format: "npy" then, "csv" now'):
        run(null_model, ROWS, tmp_path / "out", output_format="csv", **EMBED)
    run(null_model, ROWS, tmp_path / "out", output_format="csv", overwrite=True, **EMBED)
    assert {Path(n).suffix for n in shown(tmp_path / "out")} == {".csv"}
    run(null_model, ROWS.slice(0, 10), tmp_path / "out", overwrite=True, output_format="npy", **EMBED)
    assert set(shown(tmp_path / "out")) == {"part-000000.parquet", "_part-000000.npy"}


@pytest.mark.parametrize("name", ["x.npy", "x.npy.parquet"])
def test_a_file_of_someone_else_is_replaced_only_when_told(null_model: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("mine")
    with pytest.raises(RefusedError, match=rf"{name} exists"):
        run(null_model, ROWS, tmp_path / "x.npy", **EMBED)
    assert [p.name for p in tmp_path.iterdir()] == [name]
    run(null_model, ROWS, tmp_path / "x.npy", overwrite=True, **EMBED)
    assert packhorse.verify(tmp_path / "x.npy").is_finished


def test_a_stopped_overwrite_shows_nothing_of_the_run_before(null_model: Path, tmp_path: Path) -> None:
    run(null_model, ROWS, tmp_path / "x.npy", **EMBED)
    assert set(shown(tmp_path / "x.npy")) == {"x.npy", "x.npy.parquet"}
    assert run_until_stopped(null_model, ROWS, tmp_path / "x.npy", 8, overwrite=True, **EMBED)
    assert shown(tmp_path / "x.npy") == {}


@pytest.mark.parametrize("overwrite", [False, True])
def test_an_input_that_would_be_written_over_is_refused_and_survives(
    null_model: Path, tmp_path: Path, overwrite: bool
) -> None:
    pq.write_table(ROWS, tmp_path / "x.npy.parquet")
    before = (tmp_path / "x.npy.parquet").read_bytes()
    with pytest.raises(PackhorseError, match=r"x\.npy\.parquet"):
        run(null_model, tmp_path / "x.npy.parquet", tmp_path / "x.npy", overwrite=overwrite, **EMBED)
    assert (tmp_path / "x.npy.parquet").read_bytes() == before


@pytest.mark.parametrize(
    ("name", "settings", "words"),
    [
        ("x.csv", {"output_format": "parquet"}, "--output-format parquet: -o .*x.csv"),
        ("x.parquet", {"output_format": "npy", "task": "feature-extraction"}, "--output-format npy: -o .*x.parquet"),
        ("x.npy", {}, "npy holds embeddings, and this model does text-classification"),
        ("out", {"output_format": "npy"}, "npy holds embeddings, and this model does text-classification"),
        ("out", {"output_format": "tsv"}, "--output-format 'tsv'"),
        ("x.cvs", {}, "did you mean '.csv'"),
        ("x.txt", {}, "files are .parquet, .jsonl, .csv, .npy"),
    ],
)
def test_what_cannot_be_meant_is_refused_before_anything_is_made(
    null_model: Path, tmp_path: Path, name: str, settings: dict[str, Any], words: str
) -> None:
    with pytest.raises(UsageError, match=words):
        run(null_model, ROWS, tmp_path / name, **(JOB | settings))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("name", "kind"), [("x.csv", "csv"), ("x.csv/", "parquet"), ("out", "parquet")])
def test_formats_that_agree_with_the_name(null_model: Path, tmp_path: Path, name: str, kind: str) -> None:
    run(null_model, ROWS, f"{tmp_path}/{name}", output_format=kind, **JOB)  # type: ignore[arg-type]
    again = run(null_model, ROWS, f"{tmp_path}/{name}", **JOB) if name != "out" else None  # type: ignore[arg-type]
    assert again is None or again.status == "already_finished"


# -- room for one file


@pytest.mark.parametrize(("name", "job"), [("x.parquet", JOB), ("x.csv", JOB), ("x.npy", EMBED)])
def test_without_room_the_parts_are_kept_and_the_same_command_goes_on(
    null_model: Path, tmp_path: Path, name: str, job: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    run(null_model, ROWS, tmp_path / "once" / name, **job)
    asked: list[Path] = []

    def nearly_full(path: Any) -> Any:
        asked.append(Path(path))
        return shutil._ntuple_diskusage(10**9, 10**9 - 1_000, 1_000)  # type: ignore[attr-defined]

    output = tmp_path / name
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", nearly_full)
        with pytest.raises(OutputError, match="1,000 bytes are free") as caught:
            run(null_model, ROWS, output, **job)
    assert caught.value.exit_code == 1 and "goes on" in str(caught.value)
    root = tmp_path / f"{name}.packhorse"
    assert asked and asked[0].is_relative_to(root) and not output.exists()
    parts = [p for p in root.iterdir() if p.is_file()]
    needed = int(str(caught.value).split(" are needed")[0].rsplit(" ", 1)[1].replace(",", ""))
    assert sum(p.stat().st_size for p in parts) < needed < 1.2 * sum(p.stat().st_size for p in parts)
    report = run(null_model, ROWS, output, **job)
    assert (report.status, report.this_run.rows) == ("finished", 0)
    assert shown(output) == shown(tmp_path / "once" / name)
    assert not [p for p in root.iterdir() if p.is_file()]
