"""--append: files that came since are computed and added; what was there stays, to the byte."""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import packhorse
from packhorse.errors import ChangedError, UsageError
from packhorse.outputs.records import unsealed
from tests.null.reference import predicted, predictions, some_texts
from tests.null.runs import parts, rows_of, run, run_until_stopped

JOB: dict[str, Any] = {"text_column": "text", "shard_rows": 25, "max_batch_tokens": 400}
NUM_ROWS = {"a": 40, "b": 70, "c": 30, "d": 55}
TEXTS = {name: [text or "" for text in some_texts(count, count)] for name, count in NUM_ROWS.items()}
FIRST, LATER = "bd", "ac"  # by name a comes before all, and c between
ORDER = FIRST + LATER

Texts = Sequence[str | None]
Save = Callable[[Path, str, Texts], None]


def save_parquet(folder: Path, name: str, texts: Texts) -> None:
    rows = {"text": pa.array(texts, pa.string()), "file": pa.array([name] * len(texts), pa.string())}
    pq.write_table(pa.table(rows), folder / f"{name}.parquet", row_group_size=20)


def lines(name: str, texts: Texts) -> bytes:
    return b"".join(json.dumps({"text": text, "file": name}).encode() + b"\n" for text in texts)


def save_jsonl(folder: Path, name: str, texts: Texts) -> None:
    (folder / f"{name}.jsonl").write_bytes(lines(name, texts))


def save_gzip(folder: Path, name: str, texts: Texts) -> None:
    (folder / f"{name}.jsonl.gz").write_bytes(gzip.compress(lines(name, texts)))


def save_csv(folder: Path, name: str, texts: Texts) -> None:
    with (folder / f"{name}.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("text", "file"), *((text, name) for text in texts)])


FORMATS = [save_parquet, save_jsonl, save_gzip, save_csv]


def saved(folder: Path, save: Save, names: str) -> Path:
    rows = folder / "in"
    rows.mkdir(exist_ok=True)
    for name in names:
        save(rows, name, TEXTS[name])
    return rows


def expected(names: str) -> list[Any]:
    return predictions([text for name in names for text in TEXTS[name]])


def manifest(output: Path) -> dict[str, Any]:
    return unsealed((output / "_packhorse/manifest.json").read_bytes())


@pytest.mark.parametrize("save", FORMATS)
def test_the_rows_of_new_files_are_added_and_only_they_are_computed(
    null_model: Path, tmp_path: Path, save: Save
) -> None:
    output = tmp_path / "out"
    rows = saved(tmp_path, save, FIRST)
    run(null_model, rows, output, **JOB, append=True)  # nothing is there yet: a run like any other
    before = parts(output)
    saved(tmp_path, save, LATER)
    report = run(null_model, rows, output, **JOB, append=True)
    assert (report.status, report.rows, report.this_run.rows) == ("finished", 195, 70)
    assert before.items() <= parts(output).items()
    assert predicted(rows_of(output)) == expected(ORDER)
    assert [row["file"] for row in rows_of(output)] == [name for name in ORDER for _ in TEXTS[name]]
    assert [Path(f["path"]).name[0] for f in manifest(output)["input"]] == list(ORDER)
    found = packhorse.verify(output)
    assert (found.rows, found.is_finished) == (195, True)


@pytest.mark.parametrize("save", FORMATS)
def test_a_stopped_append_goes_on_to_the_same_bytes(null_model: Path, tmp_path: Path, save: Save) -> None:
    names = [f"{looks}" for looks in range(0, 16, 3)]
    rows = saved(tmp_path, save, FIRST)
    for name in ("once", *names):
        run(null_model, rows, tmp_path / name, **JOB)
    saved(tmp_path, save, LATER)
    run(null_model, rows, tmp_path / "once", **JOB, append=True)
    stopped_at = set()
    for looks in names:
        output = tmp_path / looks
        if run_until_stopped(null_model, rows, output, int(looks), **JOB, append=True):
            stopped_at.add(len(parts(output)))
            assert not packhorse.verify(output).is_finished
            assert run(null_model, rows, output, **JOB, append=int(looks) % 2 == 0).status == "finished"
        assert parts(output) == parts(tmp_path / "once")
        assert manifest(output) == manifest(tmp_path / "once")
    assert len(stopped_at) > 2


def test_a_folder_may_grow_again_and_again(null_model: Path, tmp_path: Path) -> None:
    for i, name in enumerate("dcba"):
        rows = saved(tmp_path, save_jsonl, name)
        report = run(null_model, rows, tmp_path / "out", **JOB, append=True)
        assert predicted(rows_of(tmp_path / "out")) == expected("dcba"[: i + 1])
        assert report.this_run.rows == len(TEXTS[name])
    assert manifest(tmp_path / "out")["appended_at"] == [1, 2, 3]
    assert run(null_model, rows, tmp_path / "out", **JOB).status == "already_finished"
    assert run(null_model, rows, tmp_path / "out", **JOB, append=True).status == "already_finished"


def test_an_unfinished_run_goes_on_into_the_new_files(null_model: Path, tmp_path: Path) -> None:
    rows = saved(tmp_path, save_parquet, FIRST)
    assert run_until_stopped(null_model, rows, tmp_path / "out", 6, **JOB)
    assert 0 < len(parts(tmp_path / "out")) < 5
    saved(tmp_path, save_parquet, LATER)
    run(null_model, rows, tmp_path / "out", **JOB, append=True)
    assert predicted(rows_of(tmp_path / "out")) == expected(ORDER)


def test_a_glob_grows_too_and_the_plan_stays(null_model: Path, tmp_path: Path) -> None:
    rows = saved(tmp_path, save_jsonl, FIRST)
    run(null_model, str(rows / "*.jsonl"), tmp_path / "out", **JOB)
    plan = manifest(tmp_path / "out")["plan"]
    saved(tmp_path, save_jsonl, LATER)
    run(null_model, str(rows / "*.jsonl"), tmp_path / "out", **JOB, append=True)
    assert predicted(rows_of(tmp_path / "out")) == expected(ORDER)
    assert manifest(tmp_path / "out")["plan"] == plan


@pytest.mark.parametrize("extension", ["jsonl", "csv"])
def test_parts_of_any_format_can_be_added(null_model: Path, tmp_path: Path, extension: str) -> None:
    rows = saved(tmp_path, save_csv, FIRST)
    run(null_model, rows, tmp_path / "out", **JOB, output_format=extension)
    before = parts(tmp_path / "out")
    saved(tmp_path, save_csv, LATER)
    run(null_model, rows, tmp_path / "out", **JOB, output_format=extension, append=True)
    after = parts(tmp_path / "out")
    assert before.items() <= after.items() and len(after) == len(before) + 3
    assert packhorse.verify(tmp_path / "out").rows == 195


def test_an_output_without_rows_can_grow(null_model: Path, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    save_parquet(tmp_path / "in", "b", [])
    run(null_model, tmp_path / "in", tmp_path / "out", **JOB)
    saved(tmp_path, save_parquet, "a")
    assert run(null_model, tmp_path / "in", tmp_path / "out", **JOB, append=True).rows == 40
    assert predicted(rows_of(tmp_path / "out")) == expected("a")
    assert packhorse.verify(tmp_path / "out").is_finished


def test_without_the_flag_a_grown_input_is_refused(null_model: Path, tmp_path: Path) -> None:
    rows = saved(tmp_path, save_parquet, FIRST)
    run(null_model, rows, tmp_path / "out", **JOB)
    saved(tmp_path, save_parquet, LATER)
    before = parts(tmp_path / "out")
    with pytest.raises(ChangedError, match=r"2 files came to the input.*a\.parquet.*--append computes the new files"):
        run(null_model, rows, tmp_path / "out", **JOB)
    assert parts(tmp_path / "out") == before and manifest(tmp_path / "out")["finished"]


def test_files_that_changed_or_are_gone_are_named(null_model: Path, tmp_path: Path) -> None:
    rows = saved(tmp_path, save_parquet, FIRST)
    run(null_model, rows, tmp_path / "out", **JOB)
    saved(tmp_path, save_parquet, LATER)
    state = manifest(tmp_path / "out")
    save_parquet(rows, "d", ["other"] * 3)
    with pytest.raises(ChangedError, match=r"d\.parquet has changed \(.*size"):
        run(null_model, rows, tmp_path / "out", **JOB, append=True)
    (rows / "b.parquet").unlink()
    with pytest.raises(ChangedError, match=r"b\.parquet is gone"):
        run(null_model, rows, tmp_path / "out", **JOB, append=True)
    assert manifest(tmp_path / "out") == state


def test_other_settings_are_refused_as_on_resume(null_model: Path, tmp_path: Path) -> None:
    rows = saved(tmp_path, save_parquet, FIRST)
    run(null_model, rows, tmp_path / "out", **JOB)
    saved(tmp_path, save_parquet, LATER)
    state = manifest(tmp_path / "out")
    with pytest.raises(ChangedError, match="max_length"):
        run(null_model, rows, tmp_path / "out", **JOB, append=True, max_length=9)
    assert manifest(tmp_path / "out") == state


@pytest.mark.parametrize(
    ("output", "settings", "message"),
    [
        ("x.parquet", {}, r"--append .*x\.parquet is one file: keep such an output as a folder of parts, -o .*x/"),
        ("out", {"limit": 3}, "--append takes all rows of new files, --limit 3"),
        ("out", {"overwrite": True}, "--append and --overwrite"),
    ],
)
def test_what_does_not_go_with_it(
    null_model: Path, tmp_path: Path, output: str, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        run(null_model, saved(tmp_path, save_jsonl, "a"), tmp_path / output, append=True, **settings)


def test_inputs_that_no_file_can_come_to(null_model: Path, tmp_path: Path) -> None:
    for rows in (saved(tmp_path, save_jsonl, "a") / "a.jsonl", {"text": ["good"]}):
        with pytest.raises(UsageError, match="is no folder or glob, which more files come to"):
            run(null_model, rows, tmp_path / "out", append=True)


def written(path: Path, *rows: dict[str, Any]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_values_that_do_not_fit_the_columns_of_the_earlier_files_are_error_rows(
    null_model: Path, tmp_path: Path
) -> None:
    rows, output = tmp_path / "in", tmp_path / "out"
    rows.mkdir()
    written(rows / "b.jsonl", {"text": "good", "n": 1, "any": None, "x": 1.5}, {"text": "bad", "n": 2})
    run(null_model, rows, output, **JOB)
    written(
        rows / "a.jsonl",
        {"text": "a", "n": 3, "any": "word", "x": 2},
        {"text": "cat", "n": "four"},
        {"text": "dog", "n": 2.5, "any": {"deep": [1]}},
    )
    run(null_model, rows, output, **JOB, append=True)
    found = rows_of(output)[2:]
    assert [row["n"] for row in found] == [3, None, None]
    assert [row["any"] and json.loads(row["any"]) for row in found] == ["word", None, {"deep": [1]}]
    assert [row["x"] for row in found] == [2.0, None, None]
    assert [row["error"] and row["error"]["kind"] for row in found] == [None, "does_not_fit", "does_not_fit"]
    assert '{"n": "four"} fits no column' in found[1]["error"]["message"]
    schemas = [pq.read_schema(path) for path in sorted(output.glob("part-*"))]
    assert all(schema.equals(schemas[0], check_metadata=True) for schema in schemas)


def test_columns_that_the_output_has_no_place_for_are_refused(null_model: Path, tmp_path: Path) -> None:
    rows = tmp_path / "in"
    rows.mkdir()
    written(rows / "a.jsonl", {"text": "good", "n": 1})
    run(null_model, rows, tmp_path / "all", **JOB)
    run(null_model, rows, tmp_path / "some", **JOB, keep=("n",))
    written(rows / "b.jsonl", {"text": "bad", "n": 2, "colour": "red"})
    with pytest.raises(ChangedError, match="a column 'colour'"):
        run(null_model, rows, tmp_path / "all", **JOB, append=True)
    run(null_model, rows, tmp_path / "some", **JOB, keep=("n",), append=True)
    assert [row["n"] for row in rows_of(tmp_path / "some")] == [1, 2]


def test_what_does_not_fit_is_rescued_where_the_output_has_a_column_for_it(null_model: Path, tmp_path: Path) -> None:
    rows, output = tmp_path / "in", tmp_path / "out"
    rows.mkdir()
    written(rows / "b.jsonl", {"text": "good", "n": 1})
    with (rows / "b.jsonl").open("a") as file:
        file.write("no json\n")
    run(null_model, rows, output, **JOB)
    written(rows / "a.jsonl", {"text": "a", "n": "four"}, {"text": "cat", "n": 5})
    run(null_model, rows, output, **JOB, append=True)
    found = rows_of(output)
    assert [row["_rescued_data"] for row in found] == [None, "no json", '{"n": "four"}', None]
    assert [row["n"] for row in found] == [1, None, None, 5]
    assert [row["error"] and row["error"]["kind"] for row in found] == [None, "invalid_json", None, None]


def test_bad_records_of_new_csv_files_keep_their_own_error(null_model: Path, tmp_path: Path) -> None:
    rows = saved(tmp_path, save_csv, "b")
    run(null_model, rows, tmp_path / "out", **JOB)
    (rows / "c.csv").write_text("text,file\ngood,c\ntoo,many,fields\n")
    run(null_model, rows, tmp_path / "out", **JOB, append=True)
    last = rows_of(tmp_path / "out")[-2:]
    assert [row["file"] for row in last] == ["c", None]
    assert [row["error"] and row["error"]["kind"] for row in last] == [None, "wrong_number_of_fields"]
    assert packhorse.verify(tmp_path / "out").rows == 72
