"""--retry-errors: rows in error are computed again and put in their places; everything else stays, to the byte."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import packhorse
from packhorse.errors import ChangedError, DamagedError, RowFailedError, UsageError
from packhorse.outputs.disk import Disk
from packhorse.outputs.manifest import RunFolder
from packhorse.outputs.records import Commit, ranges, rows_of_ranges, sealed, unsealed
from packhorse.outputs.retries import Retries
from packhorse.outputs.stores.local import LocalStore
from packhorse.writers import make_writer
from tests.null.reference import Prediction, predicted, predictions, some_texts
from tests.null.runs import parts, rows_of, run, run_until_stopped
from tests.null.stages import run_on_device
from tests.null.test_manifest import CrashError, CrashingDisk

TEXTS = ["good film"] * 30 + some_texts(150)  # the first of six shards has no row in error
ROWS = {"text": TEXTS, "colour": pa.array([f"c{i % 7}" for i in range(180)]).dictionary_encode()}
JOB: dict[str, Any] = {"text_column": "text", "shard_rows": 30, "max_batch_tokens": 256}
SMALL = 40  # tokens: longer rows do not fit on that device
IS_LONG = [text is not None and len(text.split()) > SMALL - 2 for text in TEXTS]
EXPECTED = predictions(TEXTS)
FAILED = Prediction(None, None, "out_of_memory")
BEFORE = [FAILED if is_long else row for is_long, row in zip(IS_LONG, EXPECTED, strict=True)]


def small_device(model: Path, output: Path, **settings: Any) -> None:
    run_on_device(model, ROWS, output, SMALL, **JOB, **settings)


def records(output: Path) -> list[Commit]:
    return RunFolder(str(output), is_file=False).commits()


def visible(output: Path) -> dict[str, bytes]:
    """All of an output but what tells times."""
    files = [p for p in output.rglob("*") if p.is_file() and p.name != "lock" and not p.name.startswith("report.")]
    return {str(p.relative_to(output)): p.read_bytes() for p in sorted(files)}


def test_rows_that_succeed_now_stand_in_their_places(null_model: Path, tmp_path: Path) -> None:
    small_device(null_model, tmp_path)
    before = parts(tmp_path)
    assert predicted(rows_of(tmp_path)) == BEFORE and BEFORE.count(FAILED) > 20
    report = run(null_model, ROWS, tmp_path, **JOB, retry_errors=True)
    nulls = TEXTS.count(None)
    assert (report.status, report.rows, report.this_run.rows) == ("finished", 180, BEFORE.count(FAILED) + nulls)
    assert report.counters.errors == report.this_run.errors == {"null_text": nulls}
    assert predicted(rows_of(tmp_path)) == EXPECTED
    assert [row["colour"] for row in rows_of(tmp_path)] == ROWS["colour"].to_pylist()
    assert parts(tmp_path)["part-000000.parquet"] == before["part-000000.parquet"]
    schemas = [pq.read_schema(path) for path in sorted(tmp_path.glob("part-*"))]
    assert all(schema.equals(schemas[0], check_metadata=True) for schema in schemas)
    assert packhorse.verify(tmp_path).is_finished
    assert json.loads((tmp_path / "_packhorse/report.json").read_text())["counters"]["errors"] == {"null_text": nulls}


def test_the_counters_of_the_texts_are_those_of_a_run_without_such_errors(null_model: Path, tmp_path: Path) -> None:
    small_device(null_model, tmp_path / "retried")
    retried = run(null_model, ROWS, tmp_path / "retried", **JOB, retry_errors=True).counters
    once = run(null_model, ROWS, tmp_path / "once", **JOB).counters
    for name in ("rows", "errors", "truncated_rows", "truncated_tokens", "real_tokens", "row_tokens", "length_rows"):
        assert getattr(retried, name) == getattr(once, name), name
    again = run(null_model, ROWS, tmp_path / "retried", **JOB)
    assert (again.status, again.counters.errors) == ("already_finished", once.errors)


def test_rows_that_fail_again_keep_their_error_and_their_bytes(null_model: Path, tmp_path: Path) -> None:
    small_device(null_model, tmp_path)
    before = visible(tmp_path)
    small_device(null_model, tmp_path, retry_errors=True)
    assert visible(tmp_path) == before


def test_part_of_the_rows_may_succeed(null_model: Path, tmp_path: Path) -> None:
    run_on_device(null_model, ROWS, tmp_path, 4, **JOB)
    small_device(null_model, tmp_path, retry_errors=True)
    assert predicted(rows_of(tmp_path)) == BEFORE
    assert [row for c in records(tmp_path) for row in c.error_rows] == [
        i % 30 for i, row in enumerate(BEFORE) if row.error
    ]
    run(null_model, ROWS, tmp_path, **JOB, retry_errors=True)
    assert predicted(rows_of(tmp_path)) == EXPECTED


def test_nothing_in_error(null_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(null_model, {"text": ["good", "bad"]}, tmp_path)
    before = visible(tmp_path)
    report = run(null_model, {"text": ["good", "bad"]}, tmp_path, retry_errors=True, progress="plain")
    assert report.status == "already_finished" and visible(tmp_path) == before
    assert "nothing to retry" in capsys.readouterr().err


def read_csv(path: Path) -> list[dict[str, Any]]:
    with path.open(newline="") as file:
        return [row | {"error": json.loads(row["error"] or "null")} for row in csv.DictReader(file)]


def test_csv_and_jsonl_parts(null_model: Path, tmp_path: Path) -> None:
    rows = {"text": [text and text.replace(" ", "\n", 1) for text in TEXTS]}
    for name, read in (("csv", read_csv), ("jsonl", None)):
        run_on_device(null_model, rows, tmp_path / name, SMALL, **JOB, output_format=name)
        run(null_model, rows, tmp_path / name, **JOB, output_format=name, retry_errors=True)
        run(null_model, rows, tmp_path / f"once_{name}", **JOB, output_format=name)
        assert parts(tmp_path / name) == parts(tmp_path / f"once_{name}")
        files = sorted((tmp_path / name).glob("part-*"))
        found = [row for file in files for row in read(file)] if read else rows_of(tmp_path / name)
        assert [row["error"] and row["error"]["kind"] for row in found] == [row.error for row in EXPECTED]


def test_arrays(null_model: Path, tmp_path: Path) -> None:
    job = JOB | {"task": "feature-extraction", "output_format": "npy"}
    run_on_device(null_model, ROWS, tmp_path / "retried", SMALL, **job)
    arrays = [np.load(p) for p in sorted((tmp_path / "retried").glob("_part-*"))]
    assert np.isnan(np.concatenate(arrays)).any(1).sum() == sum(IS_LONG) + TEXTS.count(None)
    run(null_model, ROWS, tmp_path / "retried", **job, retry_errors=True)
    run(null_model, ROWS, tmp_path / "once", **job)
    for name in ("retried", "once"):
        assert packhorse.verify(tmp_path / name).is_finished
    for one, two in zip(*(sorted((tmp_path / n).glob("_part-*")) for n in ("retried", "once")), strict=True):
        assert one.read_bytes() == two.read_bytes()
    assert rows_of(tmp_path / "retried") == rows_of(tmp_path / "once")


def older(output: Path) -> None:
    """As versions wrote it that did not note the rows in error."""
    for path in (output / "_packhorse/shards").iterdir():
        path.write_bytes(sealed({k: v for k, v in unsealed(path.read_bytes()).items() if k != "error_rows"}))


def test_records_without_the_rows_in_error(null_model: Path, tmp_path: Path) -> None:
    small_device(null_model, tmp_path / "parquet", output_prefix="p_")
    older(tmp_path / "parquet")
    run(null_model, ROWS, tmp_path / "parquet", **JOB, output_prefix="p_", retry_errors=True)
    found = [{k.removeprefix("p_"): v for k, v in row.items()} for row in rows_of(tmp_path / "parquet")]
    assert predicted(found) == EXPECTED
    small_device(null_model, tmp_path / "jsonl", output_format="jsonl")
    older(tmp_path / "jsonl")
    with pytest.raises(UsageError, match="did not note the rows in error"):
        run(null_model, ROWS, tmp_path / "jsonl", **JOB, output_format="jsonl", retry_errors=True)


def test_files_that_were_appended_are_retried_too(null_model: Path, tmp_path: Path) -> None:
    rows = tmp_path / "in"
    rows.mkdir()
    for i, name in enumerate("cab"):
        texts = pa.table({"text": pa.array([None, f"very good {name}"] * 20, pa.string())})
        pq.write_table(texts, rows / f"{name}.parquet")
        run(null_model, rows, tmp_path / "out", append=True, shard_rows=7)
        assert len(rows_of(tmp_path / "out")) == 40 * (i + 1)
    before = visible(tmp_path / "out")
    run(null_model, rows, tmp_path / "out", retry_errors=True, shard_rows=7)
    assert visible(tmp_path / "out") == before


# -- refusals


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"overwrite": True}, "--retry-errors and --overwrite"), ({"append": True}, "--append and --retry-errors")],
)
def test_what_does_not_go_with_it(null_model: Path, tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        run(null_model, ROWS, tmp_path, **JOB, retry_errors=True, **settings)


def test_only_a_finished_folder_can_be_retried(null_model: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="has no run whose errors could be retried"):
        run(null_model, ROWS, tmp_path / "out", **JOB, retry_errors=True)
    assert run_until_stopped(null_model, ROWS, tmp_path / "out", 9, **JOB)
    with pytest.raises(UsageError, match="was not run to its end"):
        run(null_model, ROWS, tmp_path / "out", **JOB, retry_errors=True)
    with pytest.raises(UsageError, match=r"--retry-errors .* is one file: keep such an output as a folder"):
        run(null_model, ROWS, tmp_path / "x.parquet", **JOB, retry_errors=True)


def test_other_rows_and_settings_are_refused(null_model: Path, tmp_path: Path) -> None:
    small_device(null_model, tmp_path)
    before = visible(tmp_path)
    with pytest.raises(ChangedError, match="max_length"):
        run(null_model, ROWS, tmp_path, **JOB, retry_errors=True, max_length=9)
    with pytest.raises(ChangedError, match="input"):
        run(null_model, {"text": TEXTS[1:]}, tmp_path, **JOB, retry_errors=True)
    with pytest.raises(RowFailedError, match="null_text"):
        run(null_model, ROWS, tmp_path, **JOB, retry_errors=True, on_error="fail")
    assert {k: v for k, v in visible(tmp_path).items() if not k.endswith(".tmp")} == before


def test_a_damaged_part_is_not_made_good(null_model: Path, tmp_path: Path) -> None:
    small_device(null_model, tmp_path)
    path = tmp_path / "part-000002.parquet"
    path.write_bytes(path.read_bytes().replace(b"PAR1", b"PAR2"))
    with pytest.raises(DamagedError, match=r"part-000002\.parquet is not as committed"):
        run(null_model, ROWS, tmp_path, **JOB, retry_errors=True)
    with pytest.raises(DamagedError):
        packhorse.verify(tmp_path)


# -- stopping and crashing


def test_a_stopped_retry_goes_on_to_the_same_bytes(null_model: Path, tmp_path: Path) -> None:
    small_device(null_model, tmp_path / "once")
    run(null_model, ROWS, tmp_path / "once", **JOB, retry_errors=True)
    stopped = 0
    for looks in range(1, 14, 2):
        output = tmp_path / f"{looks}"
        small_device(null_model, output)
        if run_until_stopped(null_model, ROWS, output, looks, **JOB, retry_errors=True):
            stopped += 1
            assert packhorse.verify(output).is_finished
            run(null_model, ROWS, output, **JOB, retry_errors=True)
        assert visible(output) == visible(tmp_path / "once")
    assert stopped > 3


def retry_shards(output: Path, disk: Disk, extension: str) -> None:
    """What a retry does with the run folder: each shard's second row is mended."""
    folder = RunFolder(str(output), False, LocalStore(disk), make_writer(extension).files)
    writer, retries = make_writer(extension), Retries(folder)
    folder.lock()
    try:
        retries.settle(folder.commits())
        for commit in folder.commits():
            if commit.error_rows:
                table = rows_with_vectors([100.0 + commit.shard.index])
                retries.replace(
                    commit, writer.extension,
                    lambda part, paths, t=table: writer.merge(part, [1], t, paths), {"errors": {}}, (),
                )  # fmt: skip
    finally:
        folder.unlock()


def rows_with_vectors(values: list[float]) -> pa.Table:
    kind = pa.list_(pa.float32(), 2)
    field = pa.field("embedding", kind, metadata={b"packhorse.embedding_format": b"float32"})
    vectors = pa.array([[v, v + 0.5] for v in values], kind)
    colours = pa.array([f"c{v % 3}" for v in values]).dictionary_encode()
    return pa.Table.from_arrays(
        [pa.array(values), colours, vectors], schema=pa.schema([("id", pa.float64()), ("c", colours.type), field])
    )


def finished_output(output: Path, extension: str) -> Path:
    from tests.null.test_manifest import SHARDS

    folder, writer = RunFolder(str(output), False, files=make_writer(extension).files), make_writer(extension)
    folder.write_manifest({"plan": "all of it", "finished": False})
    for shard in SHARDS:
        table = rows_with_vectors([float(shard.first_row + i) for i in range(10)])
        counters = {"rows": 10, "errors": {"out_of_memory": 1}}
        folder.commit(shard, writer.extension, lambda paths, t=table: writer.write(t, paths), counters, (1,))
    folder.finish(30, folder.commits(), writer.assemble)
    return output


def crashes(folder: Path, extension: str) -> Iterator[Path]:
    """An output for every step at which a retry can crash, after it did."""
    for steps in range(1_000):
        crashed = finished_output(folder / f"{steps}", extension)
        try:
            retry_shards(crashed, CrashingDisk(steps), extension)
        except CrashError:
            yield crashed
        else:
            assert steps == 3 * (4 + 3 * (1 + (extension == ".npy")) + 4)  # intent, the part's files, record
            return


@pytest.mark.parametrize("extension", [".parquet", ".jsonl", ".csv", ".npy"])
def test_a_crash_at_any_step_is_ended_by_the_next_run(tmp_path: Path, extension: str) -> None:
    expected = finished_output(tmp_path / "once", extension)
    retry_shards(expected, Disk(), extension)
    assert not list((expected / "_packhorse/retry").iterdir())
    torn = 0
    for output in crashes(tmp_path, extension):
        try:
            assert packhorse.verify(output).is_finished
        except DamagedError as error:
            assert "half replaced" in str(error) and extension == ".npy"
            torn += 1
        retry_shards(output, Disk(), extension)
        without = {k: v for k, v in visible(output).items() if not k.endswith(".tmp")}
        assert without == visible(expected)
    assert (torn > 0) == (extension == ".npy")


def test_numbers_of_rows_in_short() -> None:
    for rows, text in [((), ""), ((3,), "3"), ((0, 1, 2), "0-2"), ((3, 7, 8, 9, 12), "3,7-9,12")]:
        assert ranges(rows) == text and tuple(rows_of_ranges(text)) == rows
