"""--mirror: a file for each input file, whole as soon as visible, and the same after any stop."""

from __future__ import annotations

import gzip
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

import packhorse
from packhorse.errors import ChangedError, DamagedError, RefusedError, UsageError
from packhorse.jobs.mirroring import Mirror
from packhorse.outputs.disk import Disk
from packhorse.outputs.mirrored import MirroredFolder
from packhorse.outputs.records import Commit, MirroredFile, unsealed
from packhorse.outputs.stores.local import LocalStore
from packhorse.writers import make_writer
from tests.null.reference import predicted, predictions, some_texts
from tests.null.runs import rows_of, run, run_until_stopped, strict_lines
from tests.null.test_manifest import SHARDS, CrashError, CrashingDisk

JOB: dict[str, Any] = {"text_column": "text", "shard_rows": 25, "max_batch_tokens": 400, "mirror": True}
NUM_ROWS = {"a": 60, "none": 0, "sub/b": 25, "sub/deep/c": 26, "z": 1}
TEXTS = {name: [text or "" for text in some_texts(count, count)] for name, count in NUM_ROWS.items()}


def save_parquet(path: Path, texts: list[str]) -> None:
    rows = {"id": range(len(texts)), "text": pa.array(texts, pa.string())}
    pq.write_table(pa.table(rows, schema=pa.schema([("id", pa.int64()), ("text", pa.string())])), path)


def save_jsonl(path: Path, texts: list[str]) -> None:
    data = b"".join(
        json.dumps({"id": i, "text": text, "x": [1.50, {}]}).encode() + b"\n" for i, text in enumerate(texts)
    )
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)


def save_csv(path: Path, texts: list[str]) -> None:
    table = pa.table({"id": [f"{i:03d}" for i in range(len(texts))], "text": pa.array(texts, pa.string())})
    pyarrow.csv.write_csv(table, path)


def saved(folder: Path, save: Any, extension: str) -> Path:
    for name, texts in TEXTS.items():
        path = folder / "in" / (name + extension)
        path.parent.mkdir(parents=True, exist_ok=True)
        save(path, texts)
    return folder / "in"


def outputs(output: Path) -> dict[str, bytes]:
    """What stands in the output folder and those in it, but for the bookkeeping."""
    files = [p for p in output.rglob("*") if p.is_file() and "_packhorse" not in p.parts]
    return {str(p.relative_to(output)): p.read_bytes() for p in sorted(files)}


def bookkeeping(output: Path) -> dict[str, bytes]:
    state = output / "_packhorse"
    files = [*state.glob("shards/*"), *state.glob("files/*"), *state.glob("parts/*"), state / "manifest.json"]
    return {str(p.relative_to(state)): p.read_bytes() for p in sorted(files) if p.suffix != ".tmp"}


@pytest.mark.parametrize("extension", [".parquet", ".jsonl", ".jsonl.gz", ".csv"])
def test_every_input_file_has_its_output(null_model: Path, tmp_path: Path, extension: str) -> None:
    save = {".parquet": save_parquet, ".csv": save_csv}.get(extension, save_jsonl)
    report = run(null_model, saved(tmp_path, save, extension), tmp_path / "out", **JOB)
    plain = extension.removesuffix(".gz")
    assert list(outputs(tmp_path / "out")) == sorted(name + plain for name in NUM_ROWS)
    assert (report.status, report.rows, report.shards) == ("finished", 112, 3 + 1 + 2 + 1)
    assert sorted(report.parts) == sorted(name + plain for name in NUM_ROWS)
    for name, texts in TEXTS.items():
        path = tmp_path / "out" / (name + plain)
        if plain == ".csv":
            rows: list[Any] = pyarrow.csv.read_csv(path).to_pylist()
            assert [row["label"] for row in rows] == [row.label for row in predictions(texts)]
        else:
            rows = rows_of(path)
            assert predicted(rows) == predictions(texts)
        assert [int(row["id"]) for row in rows] == list(range(len(texts)))
    assert not list((tmp_path / "out/_packhorse/parts").iterdir())
    found = packhorse.verify(tmp_path / "out")
    assert (found.rows, found.is_finished) == (112, True)
    assert found.num_bytes == sum(map(len, outputs(tmp_path / "out").values()))
    assert run(null_model, tmp_path / "in", tmp_path / "out", **JOB).status == "already_finished"


def test_a_file_without_rows_still_has_its_columns(null_model: Path, tmp_path: Path) -> None:
    run(null_model, saved(tmp_path, save_parquet, ".parquet"), tmp_path / "out", **JOB)
    schemas = [pq.read_schema(path) for path in (tmp_path / "out").rglob("*.parquet")]
    assert len(schemas) == 5 and all(schema.equals(schemas[0]) for schema in schemas)
    assert schemas[0].names == ["id", "text", "label", "score", "error"]


def test_lines_go_out_as_they_came_in(null_model: Path, tmp_path: Path) -> None:
    run(null_model, saved(tmp_path, save_jsonl, ".jsonl"), tmp_path / "out", **JOB)
    before = (tmp_path / "in/a.jsonl").read_text().splitlines()
    after = (tmp_path / "out/a.jsonl").read_text().splitlines()
    assert all(new.startswith(old[:-1] + ', "label": ') for old, new in zip(before, after, strict=True))


@pytest.mark.parametrize("extension", [".parquet", ".jsonl.gz"])
def test_a_stopped_run_goes_on_to_the_same_bytes(null_model: Path, tmp_path: Path, extension: str) -> None:
    rows = saved(tmp_path, save_parquet if extension == ".parquet" else save_jsonl, extension)
    run(null_model, rows, tmp_path / "once", **JOB)
    expected, stopped_at = outputs(tmp_path / "once"), set()
    for looks in range(0, 24, 2):
        output = tmp_path / f"{looks}"
        if run_until_stopped(null_model, rows, output, looks, **JOB):
            stopped_at.add(len(outputs(output)))
            assert outputs(output).items() <= expected.items()
            assert not packhorse.verify(output).is_finished
            assert run(null_model, rows, output, **JOB).status == "finished"
        assert outputs(output) == expected
        assert bookkeeping(output) == bookkeeping(tmp_path / "once")
        assert packhorse.verify(output).is_finished
    assert len(stopped_at) > 2


NAMES = ["a.jsonl", "sub/none.jsonl", "sub/b.jsonl"]


def work(output: Path, disk: Disk) -> None:
    """What a job does with its run folder: two shards of the first file, none of the second, one of the third."""
    writer = make_writer(".jsonl")
    folder = MirroredFolder(str(output), False, LocalStore(disk), writer.files)
    folder.check_is_ours(overwrite=False)
    folder.lock()
    try:
        if not folder.exists:
            folder.clear()
            folder.write_manifest({"input": NAMES, "settings": {"mirror": True}, "finished": False})
        if folder.manifest()["finished"]:
            folder.check_finished(folder.manifest())
            return
        folder.check_parts(folder.commits())
        mirror = Mirror(folder, NAMES, writer, pa.table({"id": pa.array([], pa.int64())}))
        for shard in SHARDS[len(folder.commits()) :]:
            rows = pa.table({"id": range(shard.first_row, shard.first_row + shard.num_rows)})
            at = shard.start._replace(file=2) if shard.index == 2 else shard.start
            moved = type(shard)(shard.index, shard.first_row, shard.num_rows, at, at)
            mirror.committed(folder.commit(moved, ".jsonl", lambda paths, r=rows: writer.write(r, paths), {"rows": 10}))
        mirror.end()
        folder.finish(30, folder.commits(), writer.assemble)
    finally:
        folder.unlock()


def crashes(folder: Path) -> Iterator[Path]:
    for steps in range(1_000):
        try:
            work(folder / f"{steps}", CrashingDisk(steps))
        except CrashError:
            yield folder / f"{steps}"
        else:
            assert steps > 3 * 7 + 3 * 7 + 8
            return


def test_a_crash_at_any_step_leaves_only_whole_files_and_can_be_continued(tmp_path: Path) -> None:
    work(tmp_path / "once", Disk())
    expected = outputs(tmp_path / "once")
    assert [len(data.splitlines()) for data in expected.values()] == [20, 10, 0]
    for output in crashes(tmp_path):
        assert outputs(output).items() <= expected.items()
        if (output / "_packhorse/manifest.json").exists():
            packhorse.verify(output)
        work(output, Disk())
        assert outputs(output) == expected and bookkeeping(output) == bookkeeping(tmp_path / "once")
        assert packhorse.verify(output).is_finished


def test_new_files_are_added(null_model: Path, tmp_path: Path) -> None:
    rows = saved(tmp_path, save_jsonl, ".jsonl")
    for name in ("once", "stopped"):
        run(null_model, rows, tmp_path / name, **JOB)
    before = outputs(tmp_path / "once")
    save_jsonl(rows / "sub/a_new.jsonl", ["very good"] * 60)
    with pytest.raises(ChangedError, match="--append computes the new files"):
        run(null_model, rows, tmp_path / "once", **JOB)
    report = run(null_model, rows, tmp_path / "once", **JOB, append=True)
    assert (report.rows, report.this_run.rows) == (172, 60)
    assert outputs(tmp_path / "once") == before | {"sub/a_new.jsonl": (tmp_path / "once/sub/a_new.jsonl").read_bytes()}
    assert predicted(rows_of(tmp_path / "once/sub/a_new.jsonl")) == predictions(["very good"] * 60)
    assert run_until_stopped(null_model, rows, tmp_path / "stopped", 4, **JOB, append=True)
    assert not packhorse.verify(tmp_path / "stopped").is_finished
    run(null_model, rows, tmp_path / "stopped", **JOB, append=True)
    assert outputs(tmp_path / "stopped") == outputs(tmp_path / "once")
    assert packhorse.verify(tmp_path / "stopped").rows == 172


def test_other_formats_globs_and_single_files(null_model: Path, tmp_path: Path) -> None:
    rows = saved(tmp_path, save_csv, ".csv")
    run(null_model, rows, tmp_path / "parquet", **JOB, output_format="parquet")
    assert list(outputs(tmp_path / "parquet")) == sorted(f"{name}.parquet" for name in NUM_ROWS)
    run(null_model, str(rows / "*/*.csv"), tmp_path / "glob", **JOB)
    assert list(outputs(tmp_path / "glob")) == ["sub/b.csv"]
    run(null_model, rows / "a.csv", tmp_path / "one", **JOB)
    assert outputs(tmp_path / "one")["a.csv"] == b"".join((tmp_path / "one/a.csv").open("rb"))
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes/x.txt").write_text("good\nbad\n")
    run(null_model, tmp_path / "notes", tmp_path / "text", **JOB)
    assert [row["text"] for row in strict_lines(tmp_path / "text/x.jsonl")] == ["good", "bad"]
    shutil.copy(tmp_path / "notes/x.txt", tmp_path / "notes/log.2024")
    run(null_model, str(tmp_path / "notes/log*"), tmp_path / "odd", **JOB, input_format="text")
    assert list(outputs(tmp_path / "odd")) == ["log.2024.jsonl"]


def test_arrays(null_model: Path, tmp_path: Path) -> None:
    job = JOB | {"task": "feature-extraction", "output_format": "npy"}
    run(null_model, saved(tmp_path, save_parquet, ".parquet"), tmp_path / "out", **job)
    assert list(outputs(tmp_path / "out")) == sorted(f"{n}.npy{e}" for n in NUM_ROWS for e in ("", ".parquet"))
    for name, count in NUM_ROWS.items():
        assert np.load(tmp_path / f"out/{name}.npy").shape == (count, 32)
        assert pq.read_table(tmp_path / f"out/{name}.npy.parquet").num_rows == count
    assert packhorse.verify(tmp_path / "out").is_finished


# -- other people's files


def test_two_inputs_of_one_output_are_named(null_model: Path, tmp_path: Path) -> None:
    rows = saved(tmp_path, save_jsonl, ".jsonl")
    save_jsonl(rows / "a.jsonl.gz", ["good"])
    with pytest.raises(UsageError, match=r"a\.jsonl and .*a\.jsonl\.gz would both be a\.jsonl"):
        run(null_model, rows, tmp_path / "out", **JOB)


@pytest.mark.parametrize(
    ("output", "settings", "message"),
    [
        ("x.parquet", {}, "--mirror writes a file for each input file, and -o .* is one"),
        ("out", {"limit": 3}, "--limit 3 does not go with it"),
        ("out", {"retry_errors": True}, "--retry-errors does not go with it"),
    ],
)
def test_what_does_not_go_with_it(
    null_model: Path, tmp_path: Path, output: str, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        run(null_model, saved(tmp_path, save_jsonl, ".jsonl"), tmp_path / output, **JOB, **settings)
    with pytest.raises(UsageError, match=r"in memory.* is none"):
        run(null_model, {"text": ["good"]}, tmp_path / "out", **JOB)


def test_foreign_files_are_left_alone(null_model: Path, tmp_path: Path) -> None:
    rows, output = saved(tmp_path, save_jsonl, ".jsonl"), tmp_path / "out"
    (output / "sub").mkdir(parents=True)
    (output / "sub/mine.txt").write_text("mine")
    for overwrite in (False, True):
        with pytest.raises(RefusedError, match=r"holds 'sub/mine\.txt', which no run wrote"):
            run(null_model, rows, output, **JOB, overwrite=overwrite)
    shutil.rmtree(output)
    run(null_model, rows, output, **JOB)
    (output / "sub/mine.txt").write_text("mine")
    save_jsonl(rows / "sub/new.jsonl", ["good"])
    (output / "sub/new.jsonl").write_text("mine too")
    with pytest.raises(RefusedError, match=r"sub/new\.jsonl exists, and no run wrote it"):
        run(null_model, rows, output, **JOB, append=True)
    assert (output / "sub/new.jsonl").read_text() == "mine too"
    (output / "sub/new.jsonl").unlink()
    (rows / "a.jsonl").unlink()
    run(null_model, rows, output, **JOB, overwrite=True)
    assert "a.jsonl" not in outputs(output) and outputs(output)["sub/mine.txt"] == b"mine"
    assert packhorse.verify(output).rows == 53


def test_overwriting_the_other_kind_of_output(null_model: Path, tmp_path: Path) -> None:
    rows, output = saved(tmp_path, save_parquet, ".parquet"), tmp_path / "out"
    run(null_model, rows, output, **JOB)
    with pytest.raises(ChangedError, match=r"settings\.mirror: true then, false now"):
        run(null_model, rows, output, **JOB | {"mirror": False})
    run(null_model, rows, output, **JOB | {"mirror": False}, overwrite=True)
    assert all(name.startswith("part-") for name in outputs(output))
    run(null_model, rows, output, **JOB, overwrite=True)
    assert list(outputs(output)) == sorted(f"{name}.parquet" for name in NUM_ROWS)
    assert packhorse.verify(output).is_finished


def test_overwriting_goes_past_a_broken_record_and_spares_the_file_that_it_named(
    null_model: Path, tmp_path: Path
) -> None:
    rows, output = saved(tmp_path, save_parquet, ".parquet"), tmp_path / "out"
    run(null_model, rows, output, **JOB)
    min((output / "_packhorse/files").glob("*.json")).write_bytes(b"{")
    with pytest.raises(RefusedError, match=r"parquet exists, and no run wrote it") as refused:
        run(null_model, rows, output, **JOB, overwrite=True)
    spared = [name for name in outputs(output) if f"{output / name} exists" in str(refused.value)]
    assert len(spared) == 1
    (output / spared[0]).unlink()
    run(null_model, rows, output, **JOB, overwrite=True)
    assert packhorse.verify(output).is_finished


def test_damage_is_found(null_model: Path, tmp_path: Path) -> None:
    rows, output = saved(tmp_path, save_parquet, ".parquet"), tmp_path / "out"
    run(null_model, rows, output, **JOB)
    path = output / "sub/b.parquet"
    good = path.read_bytes()
    path.write_bytes(good.replace(b"PAR1", b"PAR2"))
    with pytest.raises(DamagedError, match=r"sub/b\.parquet: content differs"):
        packhorse.verify(output)
    path.write_bytes(good[:-1])
    for step in (lambda: packhorse.verify(output), lambda: run(null_model, rows, output, **JOB)):
        with pytest.raises(DamagedError, match=r"sub/b\.parquet"):
            step()
    path.unlink()
    for step in (lambda: packhorse.verify(output), lambda: run(null_model, rows, output, **JOB)):
        with pytest.raises(DamagedError, match=r"sub/b\.parquet"):
            step()
    path.write_bytes(good)
    (output / "_packhorse/files/000001.json").unlink()
    with pytest.raises(DamagedError, match="the records of 1 input files are missing"):
        packhorse.verify(output)


def test_records_say_again_what_was_written(null_model: Path, tmp_path: Path) -> None:
    run(null_model, saved(tmp_path, save_parquet, ".parquet"), tmp_path / "out", **JOB)
    found = []
    for path in sorted((tmp_path / "out/_packhorse/files").iterdir()):
        record = MirroredFile.from_json(path.read_bytes())
        assert record.to_json() == path.read_bytes()
        found.append((record.index, record.files[0].name, record.rows))
    assert found == [(i, f"{name}.parquet", count) for i, (name, count) in enumerate(sorted(NUM_ROWS.items()))]
    shards = sorted((tmp_path / "out/_packhorse/shards").iterdir())
    spans = [(c.shard.start.file, c.shard.end.file) for c in (Commit.from_json(p.read_bytes()) for p in shards)]
    assert all(start == end for start, end in spans)
    assert unsealed((tmp_path / "out/_packhorse/manifest.json").read_bytes())["settings"]["output_format"] == "parquet"


def test_in_an_object_store(null_model: Path, tmp_path: Path) -> None:
    fsspec = pytest.importorskip("fsspec")
    rows, memory = saved(tmp_path, save_parquet, ".parquet"), fsspec.filesystem("memory")
    run(null_model, rows, tmp_path / "here", **JOB)
    address = f"memory://mirror-{tmp_path.name}/out"
    assert run_until_stopped(null_model, rows, address, 6, **JOB)  # type: ignore[arg-type]
    run(null_model, rows, address, **JOB)  # type: ignore[arg-type]
    root = address.removeprefix("memory:/")
    there = {p.removeprefix(root + "/"): memory.cat_file(p) for p in memory.find(root) if "_packhorse" not in p}
    assert there == outputs(tmp_path / "here")
    assert packhorse.verify(address).is_finished
    run(null_model, rows / "a.parquet", address, **JOB, overwrite=True)  # type: ignore[arg-type]
    assert [p for p in memory.find(root) if "_packhorse" not in p] == [f"{root}/a.parquet"]
    memory.rm(root, recursive=True)
