"""Every writer: rows of a part replaced, all others left as they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from packhorse.data import EMBEDDING_FORMAT
from packhorse.writers import make_writer

ERROR = pa.struct([("kind", pa.large_string()), ("message", pa.large_string())])
VECTOR = pa.list_(pa.float32(), 2)
SCHEMA = pa.schema([
    pa.field("text", pa.large_string()),
    pa.field("colour", pa.dictionary(pa.int32(), pa.string())),
    pa.field("tags", pa.list_(pa.int64())),
    pa.field("p_embedding", VECTOR, metadata={EMBEDDING_FORMAT: b"float32"}),
    pa.field("p_error", ERROR),
])  # fmt: skip
TEXTS = ['a "quoted"\nline', "", None, "\u2028 naïve, ;\t", "\r\n", '"', "plain", '{"a": "\\n"}', "z"]
ROWS = [
    {"text": text, "colour": f"c{i % 3}", "tags": [i, None] if i % 2 else None, "p_embedding": [i, -i / 3]}
    for i, text in enumerate(TEXTS)
]
BAD: dict[str, Any] = {"p_embedding": None, "p_error": {"kind": "out_of_memory", "message": 'no\n"room"'}}


def table(rows: list[dict[str, Any]]) -> pa.Table:
    return pa.Table.from_pylist(rows, schema=SCHEMA)


def written(writer: Any, folder: Path, rows: list[dict[str, Any]]) -> list[str]:
    folder.mkdir()
    paths = [str(folder / name) for name in writer.files(f"part-000000{writer.extension}")]
    writer.write(table(rows), paths)
    return paths


def merged(writer: Any, folder: Path, part: list[str], rows: list[int]) -> list[str]:
    folder.mkdir()
    paths = [str(folder / Path(path).name) for path in part]
    writer.merge(part, rows, table([ROWS[i] for i in rows]), paths)
    return paths


def contents(paths: list[str]) -> list[bytes]:
    return [Path(path).read_bytes() for path in paths]


def read(paths: list[str]) -> list[Any]:
    """Columns and rows of Parquet, and of arrays with them; of lines their bytes."""
    if not paths[0].endswith(".parquet"):
        return contents(paths)
    found = pq.read_table(paths[0])
    return [str(found.schema), found.to_pylist(), *(np.load(path).tolist() for path in paths[1:])]


@pytest.mark.parametrize("extension", [".parquet", ".jsonl", ".csv", ".npy"])
@pytest.mark.parametrize("failed", [[0], [8], [2, 3, 4], list(range(9))])
def test_replaced_rows_are_as_if_they_had_never_failed(tmp_path: Path, extension: str, failed: list[int]) -> None:
    writer = make_writer(extension)
    whole = written(writer, tmp_path / "whole", ROWS)
    part = written(writer, tmp_path / "part", [row | BAD if i in failed else row for i, row in enumerate(ROWS)])
    assert read(part) != read(whole)
    assert read(merged(writer, tmp_path / "merged", part, failed)) == read(whole)


@pytest.mark.parametrize("extension", [".parquet", ".jsonl", ".csv", ".npy"])
def test_merging_once_more_changes_no_byte(tmp_path: Path, extension: str) -> None:
    """What a run does that was killed between two files of a part."""
    writer = make_writer(extension)
    part = written(writer, tmp_path / "part", [row | BAD if i in (1, 5) else row for i, row in enumerate(ROWS)])
    once = merged(writer, tmp_path / "once", part, [1, 5])
    assert contents(merged(writer, tmp_path / "twice", once, [1, 5])) == contents(once)
    torn = [once[0], *part[1:]]
    assert contents(merged(writer, tmp_path / "torn", torn, [1, 5])) == contents(once)


def test_a_part_as_large_as_they_come(tmp_path: Path) -> None:
    writer, count = make_writer(".parquet"), 70_000
    rows = pa.table({"text": [f"row {i}" for i in range(count)], "n": range(count)})
    writer.write(rows, [str(tmp_path / "part")])
    new = pa.table({"text": ["new"] * 100, "n": [-1] * 100})
    writer.merge([str(tmp_path / "part")], range(1, count, 700), new, [str(tmp_path / "merged")])
    found = pq.read_table(tmp_path / "merged")
    assert [i for i, n in enumerate(found["n"].to_pylist()) if n == -1] == list(range(1, count, 700))
    assert found["text"].to_pylist()[:3] == ["row 0", "new", "row 2"]
