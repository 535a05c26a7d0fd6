"""--devices: over several processes the output is that of one, to the byte, whatever happens on the way."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import packhorse
from packhorse.backends import null
from packhorse.config import EngineConfig
from packhorse.errors import ModelError, TooManyErrorsError, UsageError
from packhorse.executors.process import _environment
from packhorse.outputs.records import unsealed
from tests.models import save_null_model
from tests.null.devices import deadline, plant, texts, workers_of, write_rows
from tests.null.runs import parts, run, run_until_stopped

JOB: dict[str, Any] = {"text_column": "text", "shard_rows": 40, "max_batch_tokens": 400}
ROWS = 900


@pytest.fixture(autouse=True)
def _never_hangs() -> Iterator[None]:
    with deadline():
        yield
    assert not workers_of()


def records(output: Path) -> list[dict[str, Any]]:
    """What the bookkeeping says of each shard; it tells no time."""
    return [unsealed(path.read_bytes()) for path in sorted((output / "_packhorse" / "shards").glob("*.json"))]


def same(one: Path, other: Path) -> None:
    assert parts(one) == parts(other)
    assert records(one) == records(other)


# -- what can be said


@pytest.mark.parametrize(
    ("said", "names"),
    [
        ("auto", ("auto",)),
        ("all", ("all",)),
        ("cpu", ("cpu",)),
        ("cpu:1", ("cpu",)),
        ("cpu:3", ("cpu", "cpu", "cpu")),
        ("cpu,cpu", ("cpu", "cpu")),
        ("1", ("cuda:1",)),
        ("0,1, 2", ("cuda:0", "cuda:1", "cuda:2")),
        ("cuda:0,cuda:0", ("cuda:0", "cuda:0")),
        ("xpu:0,xpu:1", ("xpu:0", "xpu:1")),
    ],
)
def test_devices_are_one_name_a_process(said: str, names: tuple[str, ...]) -> None:
    settings = EngineConfig(model="m", devices=said)
    assert settings.device_names() == names
    assert settings.on_first_device().devices == ("auto" if names[0] == "all" else names[0])


@pytest.mark.parametrize("said", ["", "cpu:0", "tpu", "cuda:x", "0,,1", "all,cpu", "auto,auto", "cpu,0", "gpu:0", "-1"])
def test_what_no_device_is_is_a_usage_error_that_says_what_is_legal(null_model: Path, said: str) -> None:
    with pytest.raises(UsageError, match=r"(?s)--devices .*(legal are auto, cpu|differ in the last bits)"):
        run(null_model, {"text": ["a"]}, null_model / "out", devices=said)


def test_all_on_a_machine_with_one_device_is_this_process(null_model: Path, tmp_path: Path) -> None:
    report = run(null_model, {"text": ["a film"]}, tmp_path / "out", devices="all")
    assert report.rows == 1 and not report.workers


# -- the same output


def save(path: Path, rows: list[str | None]) -> Path:
    """By the name's ending; CSV has no null."""
    if path.suffix == ".parquet":
        table = pa.table({"id": range(len(rows)), "text": rows, "kind": pa.array(rows).dictionary_encode()})
        pq.write_table(table, path, row_group_size=170)
    elif path.suffix == ".jsonl":
        lines = [json.dumps({"text": text, "id": i, "more": {"x": [i]}}) for i, text in enumerate(rows)]
        lines[7] = '{"text": "broken'
        path.write_text("\n".join(lines) + "\n")
    else:
        with path.open("w", newline="") as file:
            csv.writer(file).writerows([("text", "id"), *((text, i) for i, text in enumerate(rows))])
    return path


@pytest.mark.parametrize(
    ("name", "devices", "settings"),
    [
        pytest.param("in.parquet", "cpu:2", {}, marks=pytest.mark.slow),
        ("in.parquet", "cpu:3", {"keep": (), "limit": 333}),
        pytest.param(
            "in.parquet", "cpu,cpu", {"dedup": False, "output_prefix": "p_", "scores": "all"}, marks=pytest.mark.slow
        ),
        ("in.jsonl", "cpu:2", {"output_format": "jsonl"}),
        ("in.csv", "cpu:2", {"output_format": "csv", "shard_rows": None}),
        ("in.parquet", "cpu:2", {"pair_column": "kind", "batching": "fixed", "max_batch_tokens": None}),
        ("in.parquet", "cuda:0,cuda:0", {"task": "feature-extraction", "embedding_format": "int8"}),
    ],
)
def test_output_and_bookkeeping_are_those_of_one_process(
    null_model: Path, tmp_path: Path, name: str, devices: str, settings: dict[str, Any]
) -> None:
    rows = save(tmp_path / name, texts(ROWS))
    if settings.get("pair_column"):
        rows = tmp_path / "pairs.parquet"
        pq.write_table(pa.table({"text": texts(ROWS), "kind": texts(ROWS, 1)}), rows)
    job = JOB | settings
    alone = run(null_model, rows, tmp_path / "one/", **job)
    report = run(null_model, rows, tmp_path / "many/", devices=devices, **job)
    same(tmp_path / "one", tmp_path / "many")
    assert packhorse.verify(tmp_path / "many").is_finished
    assert report.counters.deterministic() == alone.counters.deterministic()
    assert sum(worker["rows"] for worker in report.workers) == report.rows
    assert sum(worker["shards"] for worker in report.workers) == report.shards
    assert 0 <= report.device_busy_share <= 1 and all(0 <= lane["busy_share"] <= 1.05 for lane in report.lanes)


def test_one_file_and_rows_in_memory(null_model: Path, tmp_path: Path) -> None:
    rows = pa.table({"text": texts(300), "id": range(300)})
    run(null_model, rows, tmp_path / "one.jsonl", **JOB)
    with packhorse.load(null_model, backend="null", devices="cpu:2", max_batch_tokens=400) as engine:
        before = engine.predict(["a film"]).to_pylist()
        engine.run(rows, str(tmp_path / "many.jsonl"), text_column="text", shard_rows=40)
        assert engine.predict(["a film"]).to_pylist() == before
    assert (tmp_path / "many.jsonl").read_bytes() == (tmp_path / "one.jsonl").read_bytes()


def test_no_rows(null_model: Path, tmp_path: Path) -> None:
    rows = pa.table({"text": pa.array([], pa.large_string()), "id": pa.array([], pa.int8())})
    run(null_model, rows, tmp_path / "one", **JOB)
    run(null_model, rows, tmp_path / "many", devices="cpu:2", **JOB)
    same(tmp_path / "one", tmp_path / "many")


@pytest.mark.parametrize("mirror", [pytest.param(False, marks=pytest.mark.slow), True])
def test_append_and_mirror(null_model: Path, tmp_path: Path, mirror: bool) -> None:
    rows = tmp_path / f"in{mirror}"
    rows.mkdir()
    outs = [tmp_path / f"{name}{mirror}" for name in ("one", "many")]
    for step, name in enumerate("ba"):
        write_rows(rows / f"{name}.parquet", 150 + 70 * step)
        for out, devices in zip(outs, ["cpu", "cpu:2"], strict=True):
            run(null_model, rows, out, devices=devices, mirror=mirror, append=step > 0, **JOB)
    found = [{p.name: p.read_bytes() for p in out.glob("*.parquet")} for out in outs]
    assert found[0] == found[1] and len(found[0]) > 1


@pytest.mark.parametrize("settings", [{}, {"do_sample": True, "num_return_sequences": 2, "seed_column": "id"}])
def test_generation(tmp_path: Path, settings: dict[str, Any]) -> None:
    writer = save_null_model(tmp_path / "writer", architecture="LlamaForCausalLM", max_length=200)
    rows = {"text": texts(120), "id": [f"n{i}" for i in range(120)], "other": list(range(120))}
    job = {"template": "{text} number {other}", "max_new_tokens": 9, "shard_rows": 16, "logprobs": True, **settings}
    run(writer, rows, tmp_path / "one/", **job)
    run(writer, rows, tmp_path / "many/", devices="cpu:2", **job)
    same(tmp_path / "one", tmp_path / "many")


# -- stopped, and gone on with by others


def test_stopped_anywhere_it_goes_on_over_any_number_of_devices(null_model: Path, tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "in.parquet", ROWS)
    run(null_model, rows, tmp_path / "whole/", **JOB)
    stops, done = 0, 0
    for step in range(40):
        devices = ("cpu:2", "cpu", "cpu:3", "cpu", "cpu")[step % 5]
        looks = 45 if devices == "cpu" else 12
        if not run_until_stopped(null_model, rows, tmp_path / "out", looks, devices=devices, **JOB):
            break
        stops += 1
        assert len(parts(tmp_path / "out")) >= done
        done = len(parts(tmp_path / "out"))
        assert len(records(tmp_path / "out")) == done
    assert stops >= 3
    same(tmp_path / "whole", tmp_path / "out")


# -- what fails


def test_what_a_worker_raises_comes_back_as_it_was(
    null_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = (
        "from packhorse.errors import ModelError\n"
        "def forward(self, batch):\n    raise ModelError('broken on purpose')\nnull.NullModel.forward = forward\n"
    )
    plant(monkeypatch, tmp_path / "site", code)
    with pytest.raises(ModelError, match="broken on purpose") as raised:
        run(null_model, {"text": texts(200)}, tmp_path / "out", devices="cpu:2", **JOB)
    assert raised.value.exit_code == 1
    assert "in the worker process on cpu" in raised.value.__notes__[0]


def test_an_error_of_no_kind_of_ours_comes_back_too(
    null_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = (
        "class OddError(Exception):\n    def __init__(self, a, b):\n        super().__init__('odd')\n"
        "def finish(*_):\n    raise OddError(1, 2)\n"
        "import packhorse.tasks.text_classification as t\nt.TextClassification.finish = finish\n"
    )
    plant(monkeypatch, tmp_path / "site", code)
    with pytest.raises(RuntimeError, match="OddError: odd"):
        run(null_model, {"text": texts(200)}, tmp_path / "out", devices="cpu:2", **JOB)


def test_a_commit_that_fails_ends_all_workers(null_model: Path, tmp_path: Path) -> None:
    rows = pa.table({"text": pa.array([None] * 3_000, pa.string())})
    with pytest.raises(TooManyErrorsError):
        run(null_model, rows, tmp_path / "out", devices="cpu:2", max_error_rate=0.1, shard_rows=100)


def test_memory_that_is_too_small_lowers_the_same_budgets_from_the_same_shards_on(
    null_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = pa.table({"text": texts(500)})
    job = {"text_column": "text", "shard_rows": 40, "max_batch_tokens": 1_500}
    with monkeypatch.context() as patch:
        patch.setattr(null, "load", lambda request: null.NullModel(request.reduction, capacity_tokens=330))
        run(null_model, rows, tmp_path / "one", **job)
    code = "null.load = lambda request: null.NullModel(request.reduction, capacity_tokens=330)\n"
    plant(monkeypatch, tmp_path / "site", code)
    run(null_model, rows, tmp_path / "many", devices="cpu:2", **job)
    same(tmp_path / "one", tmp_path / "many")
    budgets = [unsealed((tmp_path / n / "_packhorse/manifest.json").read_bytes())["budgets"] for n in ("one", "many")]
    assert [tokens for _, tokens, _ in budgets[0]] == [1_500, 750, 375, 187]
    assert budgets[1][-1] == budgets[0][-1]


def test_a_worker_that_still_loads_is_not_waited_for_at_the_end(
    null_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first worker leaves a mark; the one that begins after it would take longer than the deadline."""
    code = f"""
import os, time
try:
    os.close(os.open({str(tmp_path / "first")!r}, os.O_CREAT | os.O_EXCL))
except FileExistsError:
    time.sleep(1_000)
"""
    plant(monkeypatch, tmp_path / "site", code)
    monkeypatch.setattr("packhorse.executors.processes.END_S", 1_000.0)
    report = run(null_model, {"text": texts(200)}, tmp_path / "out", devices="cpu:2", **JOB)
    assert sorted(worker["rows"] for worker in report.workers) == [0, 200]


def test_workers_find_modules_where_this_process_does(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Of sys.path an import passes over what is no string, and takes "" for the current folder."""
    (tmp_path / "beside.py").write_text("")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", ["", Path("/nowhere"), *sys.path])
    code = "import beside, packhorse"
    assert subprocess.run([sys.executable, "-P", "-c", code], env=_environment(), check=False).returncode == 0
