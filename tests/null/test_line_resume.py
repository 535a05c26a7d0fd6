"""Lines of every kind: a job stopped again and again ends with the bytes of one that was not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from packhorse.errors import ChangedError, UsageError
from tests.contracts.test_readers import FORMATS, Piped, expected, save_lines
from tests.null.reference import predicted, predictions, some_texts
from tests.null.runs import parts, rows_of, run, run_until_stopped

TEXTS = some_texts(300)
ROWS = pa.table({"text": pa.array(TEXTS, pa.large_string()), "n": range(300)})
JOB: dict[str, Any] = {"text_column": "text", "shard_rows": 25, "max_batch_tokens": 400}


@pytest.fixture(autouse=True)
def _same_stdin_afterwards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", sys.stdin)


@pytest.fixture
def save(tmp_path: Path, request: pytest.FixtureRequest) -> Callable[[], Any]:
    """The rows in a format; standard input anew at each call."""
    (tmp_path / "in").mkdir()
    source = FORMATS[request.param](ROWS, tmp_path / "in")

    def again() -> Any:
        return FORMATS[request.param](ROWS, tmp_path / "in") if source == "-" else source

    return again


def records(output: Path) -> list[dict]:
    return [json.loads(p.read_bytes()) for p in sorted((output / "_packhorse/shards").glob("*.json"))]


@pytest.mark.parametrize(("save", "kind"), [(k, k) for k in FORMATS if k != "table_in_pieces"], indirect=["save"])
def test_a_run_that_is_stopped_again_and_again_ends_with_the_same_bytes(
    null_model: Path, tmp_path: Path, save: Callable[[], Any], kind: str
) -> None:
    run(null_model, save(), tmp_path / "once", **JOB)
    assert predicted(rows_of(tmp_path / "once")) == predictions(expected(kind, ROWS)["text"].to_pylist())
    resumed_at = set()
    while run_until_stopped(null_model, save(), tmp_path / "often", 9, **JOB):
        resumed_at.add(len(parts(tmp_path / "often")))
        assert len(resumed_at) < 100
    assert len(resumed_at) > 3
    assert parts(tmp_path / "often") == parts(tmp_path / "once")
    assert records(tmp_path / "often") == records(tmp_path / "once")


@pytest.mark.parametrize("codec", ["gz", "zst", "bz2"])
def test_compressed_lines_to_lines_go_through_as_they_are(null_model: Path, tmp_path: Path, codec: str) -> None:
    (tmp_path / "plain").mkdir()
    (tmp_path / "packed").mkdir()
    for kind, folder in (("lines_files", "plain"), (f"lines_{codec}", "packed")):
        source = FORMATS[kind](ROWS, tmp_path / folder)
        run(null_model, source, tmp_path / f"{folder}.jsonl", **JOB)
    assert (tmp_path / "packed.jsonl").read_bytes() == (tmp_path / "plain.jsonl").read_bytes()


def test_another_stream_of_the_same_head_is_refused(null_model: Path, tmp_path: Path) -> None:
    """Rows differ beyond what the fingerprint holds, and before where the run goes on."""
    long = pa.table({"text": [f"{i} " + "word " * 200 for i in range(300)]})
    save_lines(long, tmp_path / "rows.jsonl")
    content = (tmp_path / "rows.jsonl").read_bytes()
    sys.stdin = Piped(content)  # type: ignore[assignment]
    assert run_until_stopped(null_model, "-", tmp_path / "out", 40, **JOB)
    assert len(parts(tmp_path / "out")) > 3
    at = content.index(b'"75 ')
    assert at > 64 << 10
    sys.stdin = Piped(content[: at + 1] + b"9" + content[at + 2 :])  # type: ignore[assignment]
    with pytest.raises(ChangedError, match="CRC-32"):
        run(null_model, "-", tmp_path / "out", **JOB)
    sys.stdin = Piped(content.replace(b'"0 ', b'"1 ', 1))  # type: ignore[assignment]
    with pytest.raises(ChangedError, match="head_sha256"):
        run(null_model, "-", tmp_path / "out", **JOB)
    sys.stdin = Piped(content)  # type: ignore[assignment]
    assert run(null_model, "-", tmp_path / "out", **JOB).rows == 300


def test_the_command_line_reads_its_standard_input(null_model: Path, tmp_path: Path) -> None:
    content = "text;n\n" + "".join(f'"{text or ""}";{i}\n' for i, text in enumerate(TEXTS))
    flags = ["--input-format", "csv", "--delimiter", ";", "--text-column", "text", "--backend", "null", "--quiet"]
    command = [sys.executable, "-m", "packhorse", "run", str(null_model), "-", "-o", str(tmp_path / "out"), *flags]
    subprocess.run(command, input=content.encode(), check=True, env=os.environ | {"PYTHONWARNINGS": "error"})
    assert predicted(rows_of(tmp_path / "out")) == predictions([text or "" for text in TEXTS])


def test_a_bad_record_is_a_row_of_the_output(null_model: Path, tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_bytes(b'id,text\n1,good\n2\n3,"open\n4,bad\n5,caf\xe9\n6,"good"\n')
    run(null_model, tmp_path / "rows.csv", tmp_path / "out", text_column="text")
    found = rows_of(tmp_path / "out")
    kinds = [row["error"] and row["error"]["kind"] for row in found]
    assert kinds == [None, "wrong_number_of_fields", "unclosed_quote", None, "invalid_utf8", None]
    assert [row["_rescued_data"] for row in found] == [None, "2", '3,"open', None, "5,caf\\xe9", None]
    good = [row for row in found if not row["error"]]
    assert predicted(good) == predictions(["good", "bad", "good"])


def test_how_a_file_is_read_belongs_to_the_run(null_model: Path, tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_bytes(b"text\ngood\nbad\n")
    run(null_model, tmp_path / "rows.csv", tmp_path / "out")
    with pytest.raises(ChangedError, match=r"settings\.header"):
        run(null_model, tmp_path / "rows.csv", tmp_path / "out", header=False)


@pytest.mark.parametrize("option", [{"delimiter": ";"}, {"header": False}, {"input_format": "csv"}])
def test_rows_in_memory_have_no_settings_for_files(null_model: Path, tmp_path: Path, option: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="in memory"):
        run(null_model, ROWS, tmp_path / "out", **option)
