"""The command line: exit codes, and what is said where."""

from __future__ import annotations

import fcntl
import json
import re
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from tests.cpu import embedders
from tests.cpu.command import Done, forked, packhorse, parts, write_rows
from tests.models import save_null_model


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rows(tmp_path_factory.mktemp("rows") / "in.parquet", 25)


def run_null(model: Path, rows: Path, out: Any, *flags: Any) -> Done:
    return packhorse("run", model, rows, "-o", out, "--backend", "null", *flags)


def test_help_imports_no_torch() -> None:
    import subprocess
    import sys

    code = "import sys; sys.argv = ['packhorse', 'run', '--help']\nfrom packhorse.cli import main\n"
    code += "try: main()\nfinally: sys.stderr.write(' '.join(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    loaded = {name.split(".")[0] for name in done.stderr.split()}
    assert "--max-batch-tokens" in done.stdout
    assert "packhorse" in loaded
    assert loaded.isdisjoint({"torch", "transformers", "tokenizers", "pyarrow", "numpy"})


def test_version() -> None:
    import packhorse as package

    done = packhorse("--version")
    assert (done.returncode, done.stdout) == (0, f"packhorse {package.__version__}\n")


def test_a_run_says_its_plan_and_first_rows_on_stderr_and_its_summary_on_stdout(
    null_model: Path, rows: Path, tmp_path: Path
) -> None:
    done = run_null(null_model, rows, f"{tmp_path}/out/")
    assert done.returncode == 0
    said = done.stderr.splitlines()
    assert said[0].startswith("text-classification with ")
    assert said[1] == "first predictions:"
    shown = [re.fullmatch(r"  'a dull film number (\d)' +label='L[01]', score=0\.\d{4}", line) for line in said[2:]]
    assert [match and match[1] for match in shown] == ["0", "1", "2"]
    summary = done.stdout.splitlines()
    assert summary[0] == "finished"
    assert "(25 rows in 1 shard)" in summary[1]
    assert all(re.match(r"  \w+ +\S", line) for line in summary[1:])


def test_the_same_command_again_has_nothing_left_to_do(null_model: Path, rows: Path, tmp_path: Path) -> None:
    run_null(null_model, rows, tmp_path / "out", "--quiet")
    before = parts(tmp_path / "out")
    done = run_null(null_model, rows, tmp_path / "out")
    assert (done.returncode, done.stdout.splitlines()[0], done.stderr) == (0, "already finished", "")
    assert parts(tmp_path / "out") == before


def test_quiet_prints_nothing(null_model: Path, rows: Path, tmp_path: Path) -> None:
    done = run_null(null_model, rows, tmp_path / "out", "--quiet")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_json_progress_is_an_object_a_line_and_ends_with_finished(null_model: Path, rows: Path, tmp_path: Path) -> None:
    done = run_null(null_model, rows, tmp_path / "out", "--progress", "json")
    events = [json.loads(line) for line in done.stderr.splitlines()]
    assert done.stdout == ""
    assert [e["event"] for e in events if e["event"] != "progress"] == ["plan", "preview", "finished"]
    assert events[-1]["event"] == "finished"
    assert events[-1]["rows"] == 25
    assert len(events[1]["rows"]) == 3


def test_a_torch_run_prints_our_lines_and_no_others(tmp_path: Path) -> None:
    """A missing pooler and texts that are too long are what transformers would warn about."""
    model = embedders.save_body(tmp_path / "model", pooler=False)
    texts = [f"a good film {i} " * 40 for i in range(25)]
    rows = write_rows(tmp_path / "in.parquet", 25, text=texts)
    done = packhorse("run", model, rows, "-o", tmp_path / "out", "--devices", "cpu")
    said = done.stderr.splitlines()
    notes = [line for line in said if line.startswith("  fp32: 25 rows are too few")]  # where there is bf16
    assert done.returncode == 0
    assert said[0].startswith("feature-extraction with ")
    assert said[1 + len(notes)] == "first predictions:"
    assert all("embedding=[" in line for line in said[2 + len(notes) :])
    assert len(said) == 5 + len(notes)
    assert done.stdout.splitlines()[0] == "finished"
    assert all(re.match(r"  \w+ +\S", line) for line in done.stdout.splitlines()[1:])


# -- 2: what cannot be meant


def assert_usage_error(done: Done, *words: str) -> None:
    assert done.returncode == 2
    assert done.stdout == ""
    assert [word for word in words if word not in done.stderr] == []
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--text-column", "txt"], ["--text-column txt", "id", "text"]),
        (["--keep", "id,nothing"], ["--keep nothing", "id, text"]),
        (["--scores", "some"], ["--scores", "top", "all"]),
        (["--max-length", "0"], ["--max-length 0"]),
        (["--max-error-rate", "2"], ["--max-error-rate"]),
        (["--exact", "--precision", "bf16"], ["--exact", "--precision"]),
        (["--no-such-flag"], ["--no-such-flag"]),
    ],
    ids=lambda x: x[0],
)
def test_a_flag_that_cannot_be_meant_ends_with_2(
    null_model: Path, rows: Path, tmp_path: Path, flags: list[str], words: list[str]
) -> None:
    assert_usage_error(run_null(null_model, rows, tmp_path / "out", *flags), *words)
    assert not (tmp_path / "out").exists()


def test_an_output_of_unknown_format_ends_with_2_and_suggests(null_model: Path, rows: Path, tmp_path: Path) -> None:
    assert_usage_error(run_null(null_model, rows, tmp_path / "x.arrow"), ".parquet, .jsonl", f"{tmp_path}/x.arrow/")
    assert_usage_error(run_null(null_model, rows, tmp_path / "x.json"), "did you mean '.jsonl'?")


def test_an_input_that_is_not_there_ends_with_2(null_model: Path, tmp_path: Path) -> None:
    assert_usage_error(run_null(null_model, tmp_path / "none.parquet", tmp_path / "out"), "none.parquet")


# -- 1: failed


def test_a_file_that_is_no_parquet_ends_with_1_and_is_named(null_model: Path, tmp_path: Path) -> None:
    (tmp_path / "in.parquet").write_text("no Parquet at all")
    done = run_null(null_model, tmp_path / "in.parquet", tmp_path / "out")
    assert done.returncode == 1
    assert "in.parquet" in done.stderr and "Traceback" not in done.stderr


def test_on_error_fail_ends_with_1_and_names_the_row(null_model: Path, tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "in.parquet", 4, text=["a", "b", None, "d"])
    done = run_null(null_model, rows, tmp_path / "out", "--on-error", "fail")
    assert done.returncode == 1
    assert "row 2: null_text" in done.stderr
    assert run_null(null_model, rows, tmp_path / "other").returncode == 0


# -- 3: going on would be wrong


def test_changed_settings_end_with_3_and_are_listed(null_model: Path, rows: Path, tmp_path: Path) -> None:
    run_null(null_model, rows, tmp_path / "out", "--quiet")
    done = run_null(null_model, rows, tmp_path / "out", "--max-length", "8")
    assert done.returncode == 3
    assert "settings.max_length: null then, 8 now" in done.stderr
    assert run_null(null_model, rows, tmp_path / "out", "--max-length", "8", "--overwrite").returncode == 0


def test_a_model_that_asks_for_code_ends_with_3(rows: Path, tmp_path: Path) -> None:
    model = save_null_model(tmp_path / "model")
    embedders.edit_json(model / "config.json", auto_map={"AutoModel": "code.Model"})
    done = run_null(model, rows, tmp_path / "out")
    assert done.returncode == 3
    assert "auto_map" in done.stderr


def test_an_output_that_another_process_works_on_ends_with_3(null_model: Path, rows: Path, tmp_path: Path) -> None:
    state = tmp_path / "out" / "_packhorse"
    state.mkdir(parents=True)
    with (state / "lock").open("w") as lock:
        lock.write("process 42 on elsewhere")
        lock.flush()
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = run_null(null_model, rows, tmp_path / "out")
    assert done.returncode == 3
    assert "process 42 on elsewhere" in done.stderr
    assert run_null(null_model, rows, tmp_path / "out").returncode == 0


def test_a_folder_with_somebodys_files_ends_with_3_and_keeps_them(null_model: Path, rows: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    done = run_null(null_model, rows, tmp_path, "--overwrite")
    assert done.returncode == 3
    assert "thesis.txt" in done.stderr
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


# -- 4: too many rows in error


def test_more_errors_than_allowed_end_with_4(null_model: Path, tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "in.parquet", 1_000, text=[None, "a dull film"] * 500)
    done = run_null(null_model, rows, tmp_path / "out", "--max-error-rate", "0.4")
    assert done.returncode == 4
    assert "500 of 1,000 rows" in done.stderr and "null_text" in done.stderr
    assert run_null(null_model, rows, tmp_path / "other").returncode == 0


# -- verify


def test_verify_finds_a_good_output_good_and_names_a_damaged_part(null_model: Path, rows: Path, tmp_path: Path) -> None:
    run_null(null_model, rows, tmp_path / "out", "--quiet", "--shard-rows", "10")
    good = packhorse("verify", tmp_path / "out")
    assert good.returncode == 0
    assert "25 rows in 3 shards" in good.stdout and good.stdout.rstrip().endswith("finished")
    part = tmp_path / "out" / "part-000001.parquet"
    part.write_bytes(part.read_bytes()[:-1] + b"!")
    damaged = packhorse("verify", tmp_path / "out")
    assert (damaged.returncode, damaged.stdout) == (1, "")
    assert "part-000001.parquet" in damaged.stderr and "part-000000" not in damaged.stderr
    assert packhorse("verify", tmp_path).returncode == 2


def test_export_writes_a_folder_that_run_takes(bert: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    rows = write_rows(tmp_path / "in.parquet", 20)
    written = forked("export", bert, tmp_path / "graph", "--backend", "onnx")
    assert written.returncode == 0 and "onnx, fp32" in written.stdout, written.stderr
    for model, out in ((bert, "torch"), (tmp_path / "graph", "onnx")):
        done = forked("run", model, rows, "-o", tmp_path / f"{out}.parquet", "--devices", "cpu")
        assert done.returncode == 0, done.stderr
    labels = [pq.read_table(tmp_path / f"{out}.parquet")["label"].to_pylist() for out in ("torch", "onnx")]
    assert labels[0] == labels[1]
    again = forked("export", bert, tmp_path / "graph")
    assert again.returncode == 2 and "not an empty folder" in again.stderr
