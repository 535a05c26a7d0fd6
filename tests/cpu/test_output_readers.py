"""An output folder is read as it lies by the libraries people have, and by one-file outputs' readers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

import packhorse

ROWS = 60


@pytest.fixture(scope="module")
def output(null_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three parts, every tenth row in error."""
    out = tmp_path_factory.mktemp("readers") / "out"
    texts = [None if i % 10 == 0 else f"a dull film number {i}" for i in range(ROWS)]
    packhorse.run(null_model, {"id": range(ROWS), "text": texts}, out, backend="null", scores="all", shard_rows=25)
    return out


def assert_is_the_output(rows: list[dict[str, Any]], output: Path) -> None:
    """Same rows in the same order as the parts read one by one."""
    expected = [row for part in sorted(output.glob("part-*")) for row in pq.ParquetFile(part).read().to_pylist()]
    assert len(expected) == ROWS
    assert [int(row["id"]) for row in rows] == list(range(ROWS))
    assert [row["label"] for row in rows] == [row["label"] for row in expected]
    assert [None if row["error"] is None else row["error"]["kind"] for row in rows] == [
        None if i % 10 else "null_text" for i in range(ROWS)
    ]
    for row, wanted in zip(rows, expected, strict=True):
        assert (None if row["scores"] is None else list(row["scores"])) == wanted["scores"]


def test_pyarrow_reads_the_folder(output: Path) -> None:
    assert_is_the_output(pq.read_table(output).to_pylist(), output)


def test_pandas_reads_the_folder(output: Path) -> None:
    pandas = pytest.importorskip("pandas")
    frame = pandas.read_parquet(output)
    rows = frame.astype(object).where(frame.notna(), None).to_dict("records")
    assert_is_the_output(rows, output)


def test_polars_reads_the_parts(output: Path) -> None:
    polars = pytest.importorskip("polars")
    assert_is_the_output(polars.read_parquet(output / "*.parquet").to_dicts(), output)


def test_datasets_reads_the_parts(output: Path, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    files = str(output / "*.parquet")
    rows = datasets.load_dataset("parquet", data_files=files, split="train", cache_dir=str(tmp_path))
    assert_is_the_output(rows.to_list(), output)


@pytest.mark.parametrize("name", ["one.parquet", "one.jsonl"])
def test_one_file_holds_the_rows_of_the_folder(null_model: Path, output: Path, tmp_path: Path, name: str) -> None:
    rows = pq.read_table(output, columns=["id", "text"])
    packhorse.run(null_model, rows, tmp_path / name, backend="null", scores="all", shard_rows=25)
    if name.endswith(".parquet"):
        assert_is_the_output(pq.read_table(tmp_path / name).to_pylist(), output)
        return
    found = [json.loads(line) for line in (tmp_path / name).read_text().splitlines()]
    wanted = pq.read_table(output).to_pylist()
    assert [{**row, "score": None, "scores": None} for row in found] == [
        {**row, "score": None, "scores": None} for row in wanted
    ]
    assert [row["score"] for row in found] == pytest.approx([row["score"] for row in wanted])
