"""README's tables of what goes in and out: every line of them is tried."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import packhorse
from tests.remote.conftest import Bucket

README = (Path(__file__).parents[2] / "README.md").read_text()
TEXTS = ["a good film", "01234", "NA", "two\nlines, and a comma", "the end"]
LINES = [text for text in TEXTS if "\n" not in text]  # of formats in which a row is a line


def documented(heading: str) -> set[str]:
    """The code of the first cells of the table that begins with such a heading."""
    table = README.split(f"| {heading} |", 1)[1].split("\n\n", 1)[0]
    cells = [line.split("|")[1] for line in table.splitlines()[2:]]
    return {code for cell in cells for code in re.findall("`([^`]+)`", cell)}


def _jsonl(texts: list[str]) -> bytes:
    return "".join(json.dumps({"text": text}) + "\n" for text in texts).encode()


def _csv(texts: list[str]) -> bytes:
    made = io.StringIO()
    csv.writer(made).writerows([["text"], *([text] for text in texts)])
    return made.getvalue().encode()


def _parquet(texts: list[str]) -> bytes:
    made = io.BytesIO()
    pq.write_table(pa.table({"text": texts}), made)
    return made.getvalue()


def _tsv(texts: list[str]) -> bytes:
    return "\n".join(["text", *texts]).encode()


def _zst(data: bytes) -> bytes:
    return bytes(pa.Codec("zstd").compress(data, asbytes=True))


# name in README: (file to write, its bytes, the texts in it)
FILES: dict[str, tuple[str, bytes, list[str]]] = {
    "rows.parquet": ("rows.parquet", _parquet(TEXTS), TEXTS),
    "rows.jsonl": ("rows.jsonl", _jsonl(TEXTS), TEXTS),
    "rows.ndjson": ("rows.ndjson", _jsonl(TEXTS), TEXTS),
    "rows.csv": ("rows.csv", _csv(TEXTS), TEXTS),
    "rows.tsv": ("rows.tsv", _tsv(LINES), LINES),
    "rows.tab": ("rows.tab", _tsv(LINES), LINES),
    "rows.txt": ("rows.txt", "\n".join(LINES).encode(), LINES),
    "rows.jsonl.gz": ("rows.jsonl.gz", gzip.compress(_jsonl(TEXTS)), TEXTS),
    "rows.csv.zst": ("rows.csv.zst", _zst(_csv(TEXTS)), TEXTS),
    "rows.txt.bz2": ("rows.txt.bz2", bz2.compress("\n".join(LINES).encode()), LINES),
    "rows/": ("rows/a.csv", _csv(TEXTS), TEXTS),
    "rows/*.csv": ("rows/a.csv", _csv(TEXTS), TEXTS),
}
OTHERS = {"-", "s3://bucket/rows.parquet", "dataset:folder"}


def predictions(model: Path, rows: Any, output: Path) -> dict[str, Any]:
    """By text."""
    packhorse.run(model, rows, output, backend="null")
    table = pq.read_table(output)
    assert table["error"].null_count == table.num_rows
    return dict(zip(table["text"].to_pylist(), table["score"].to_pylist(), strict=True))


@pytest.fixture
def expected(null_model: Path, tmp_path: Path) -> dict[str, Any]:
    return predictions(null_model, pa.table({"text": TEXTS}), tmp_path / "expected")


def test_every_line_of_the_tables_is_tried_here() -> None:
    assert documented("INPUT") == {*FILES, *OTHERS}
    assert documented("OUTPUT") == {*WRITTEN, *STORED}


@pytest.mark.parametrize("name", FILES)
def test_a_file_of_the_table_goes_in(
    null_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, expected: dict[str, Any], name: str
) -> None:
    file, data, texts = FILES[name]
    monkeypatch.chdir(tmp_path)
    Path(file).parent.mkdir(exist_ok=True)
    Path(file).write_bytes(data)
    assert predictions(null_model, name, tmp_path / "out") == {text: expected[text] for text in texts}


def test_standard_input_goes_in(
    null_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, expected: dict[str, Any]
) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(_jsonl(TEXTS))))
    assert predictions(null_model, "-", tmp_path / "out") == expected


def test_a_dataset_goes_in(
    null_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, expected: dict[str, Any]
) -> None:
    datasets = pytest.importorskip("datasets")
    monkeypatch.chdir(tmp_path)
    datasets.Dataset.from_dict({"text": TEXTS}).save_to_disk("folder")
    assert predictions(null_model, "dataset:folder", tmp_path / "out") == expected


def test_an_address_goes_in_and_out(null_model: Path, tmp_path: Path, bucket: Bucket, expected: dict[str, Any]) -> None:
    address = bucket.put("rows.parquet", _parquet(TEXTS))
    packhorse.run(null_model, address, f"{bucket}/out/", backend="null")
    table = pq.read_table(io.BytesIO(bucket.get("out/part-000000.parquet")))
    assert dict(zip(table["text"].to_pylist(), table["score"].to_pylist(), strict=True)) == expected


STORED = {"-o s3://bucket/out/"}


def _embedding_lists(texts: list[str]) -> np.ndarray:
    return np.array([json.loads(text) for text in texts], np.float32)


def _csv_rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def _of_jsonl(path: Path) -> tuple[list[str], np.ndarray]:
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return [row["text"] for row in rows], np.array([row["embedding"] for row in rows], np.float32)


def _of_csv(path: Path) -> tuple[list[str], np.ndarray]:
    rows = _csv_rows(path)
    return [row["text"] for row in rows], _embedding_lists([row["embedding"] for row in rows])


def _of_parquet(path: Path) -> tuple[list[str], np.ndarray]:
    table = pq.read_table(path)
    return table["text"].to_pylist(), np.array(table["embedding"].to_pylist(), np.float32)


def _of_npy(array: Path, columns: Path) -> tuple[list[str], np.ndarray]:
    return pq.read_table(columns)["text"].to_pylist(), np.load(array, mmap_mode="r")


# flags in README: what reads the output, in a folder of its own
WRITTEN: dict[str, Callable[[], tuple[list[str], np.ndarray]]] = {
    "-o out/": lambda: _of_parquet(Path("out")),
    "-o out/ --output-format jsonl": lambda: _of_jsonl(Path("out/part-000000.jsonl")),
    "-o out/ --output-format csv": lambda: _of_csv(Path("out/part-000000.csv")),
    "-o out/ --output-format npy": lambda: _of_npy(Path("out/_part-000000.npy"), Path("out")),
    "-o scored.parquet": lambda: _of_parquet(Path("scored.parquet")),
    "-o scored.jsonl": lambda: _of_jsonl(Path("scored.jsonl")),
    "-o scored.csv": lambda: _of_csv(Path("scored.csv")),
    "-o vectors.npy": lambda: _of_npy(Path("vectors.npy"), Path("vectors.npy.parquet")),
    "-o out/ --mirror": lambda: _of_jsonl(Path("out/a/b.jsonl")),
}


@pytest.mark.parametrize("flags", WRITTEN)
def test_an_output_of_the_table_is_written(
    null_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("in/a").mkdir(parents=True)
    Path("in/a/b.jsonl.gz").write_bytes(gzip.compress(_jsonl(TEXTS)))
    _, output, *rest = flags.split()
    settings: dict[str, Any] = {"mirror": True} if rest == ["--mirror"] else {}
    settings |= {"output_format": rest[1]} if len(rest) > 1 else {}
    packhorse.run(null_model, "in", output, backend="null", task="feature-extraction", **settings)
    packhorse.run(null_model, pa.table({"text": TEXTS}), "whole/", backend="null", task="feature-extraction")
    texts, vectors = WRITTEN[flags]()
    assert texts == TEXTS
    np.testing.assert_array_equal(vectors, _of_parquet(Path("whole"))[1])
