"""NumPy arrays against numpy.save, and the columns beside them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from packhorse.data import EMBEDDING_FORMAT
from packhorse.errors import DamagedError, UsageError
from packhorse.writers import make_writer

WRITER = make_writer(".npy")
TYPES = [np.float32, np.float16, np.int8, np.uint8]
every_type = pytest.mark.parametrize("dtype", TYPES)


def embeddings(dtype: Any, count: int, first: int = 0, width: int = 5) -> tuple[pa.Table, np.ndarray]:
    """A table as the finish stage makes it, every seventh row in error; and the array it stands for."""
    rows = np.arange(first, first + count)
    array = (rows[:, None] * 3 + np.arange(width)).astype(dtype)
    is_error = rows % 7 == 2
    array[is_error] = np.nan if np.dtype(dtype).kind == "f" else 0
    flat = pa.array(np.where(is_error[:, None], 1, array).astype(dtype).reshape(-1))
    vectors = pa.FixedSizeListArray.from_arrays(flat, width, mask=pa.array(is_error))
    field = pa.field("p_embedding", vectors.type, metadata={EMBEDDING_FORMAT: "float32"})
    error = pa.array([{"kind": "null_text"} if e else None for e in is_error], pa.struct([("kind", pa.string())]))
    columns = [pa.array(rows), vectors, error]
    return pa.table(columns, schema=pa.schema([("id", pa.int64()), field, pa.field("error", error.type)])), array


def written(table: pa.Table, folder: Path, name: str) -> list[str]:
    paths = [str(folder / n) for n in WRITER.files(name)]
    WRITER.write(table, paths)
    return paths


@every_type
def test_an_array_is_what_numpy_saves(tmp_path: Path, dtype: Any) -> None:
    table, array = embeddings(dtype, 20)
    written(table, tmp_path, "x.npy")
    np.save(tmp_path / "expected.npy", array)
    assert (tmp_path / "x.npy").read_bytes() == (tmp_path / "expected.npy").read_bytes()
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    assert mapped.dtype == dtype and mapped.shape == (20, 5)
    assert pq.read_table(tmp_path / "x.npy.parquet").equals(table.drop_columns("p_embedding"))


@every_type
def test_one_file_of_the_parts_is_the_array_of_all_rows(tmp_path: Path, dtype: Any) -> None:
    counts = [11, 0, 1, 30]
    firsts = np.cumsum([0, *counts])
    parts = [
        written(embeddings(dtype, n, int(first))[0], tmp_path, f"part-00000{i}.parquet")
        for i, (n, first) in enumerate(zip(counts, firsts, strict=False))
    ]
    table, array = embeddings(dtype, sum(counts))
    WRITER.assemble(parts, [str(tmp_path / n) for n in WRITER.files("x.npy")])
    np.save(tmp_path / "expected.npy", array)
    assert (tmp_path / "x.npy").read_bytes() == (tmp_path / "expected.npy").read_bytes()
    assert pq.read_table(tmp_path / "x.npy.parquet").equals(table.drop_columns("p_embedding"))


def test_a_folder_of_parts_is_read_as_parquet_and_as_arrays(tmp_path: Path) -> None:
    for i in range(3):
        written(embeddings(np.float32, 10, 10 * i)[0], tmp_path, f"part-00000{i}.parquet")
    table, array = embeddings(np.float32, 30)
    assert pq.read_table(tmp_path).equals(table.drop_columns("p_embedding"))
    arrays = [np.load(path, mmap_mode="r") for path in sorted(tmp_path.glob("*.npy"))]
    np.testing.assert_array_equal(np.concatenate(arrays), array)


def test_no_rows(tmp_path: Path) -> None:
    table, _ = embeddings(np.float16, 0)
    part = written(table, tmp_path, "part-000000.parquet")
    WRITER.assemble([part], [str(tmp_path / n) for n in WRITER.files("x.npy")])
    assert np.load(tmp_path / "x.npy").shape == (0, 5)
    assert np.load(tmp_path / "x.npy").dtype == np.float16


def test_a_slice_of_a_table_is_that_slice(tmp_path: Path) -> None:
    table, array = embeddings(np.float32, 40)
    for part in (table.slice(9, 11), pa.concat_tables([table.slice(9, 3), table.slice(12, 8)])):
        written(part, tmp_path, "x.npy")
        np.testing.assert_array_equal(np.load(tmp_path / "x.npy"), array[9:20])


def test_the_same_table_gives_the_same_bytes(tmp_path: Path) -> None:
    files = []
    for name in ("a.npy", "b.npy"):
        files.append([Path(p).read_bytes() for p in written(embeddings(np.float32, 9)[0], tmp_path, name)])
    assert files[0] == files[1]


def test_the_last_embedding_is_the_one_that_was_computed(tmp_path: Path) -> None:
    """Another may have come with the input, from an earlier run."""
    table, array = embeddings(np.float32, 5)
    earlier = table.rename_columns(["id", "embedding", "error"]).select(["embedding"])
    both = pa.table([*earlier.columns, *table.columns], schema=pa.schema([*earlier.schema, *table.schema]))
    written(both, tmp_path, "x.npy")
    np.testing.assert_array_equal(np.load(tmp_path / "x.npy"), array)
    assert pq.read_schema(tmp_path / "x.npy.parquet").names == ["embedding", "id", "error"]


def test_a_table_without_embeddings_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="parquet, jsonl or csv"):
        written(pa.table({"label": ["x"]}), tmp_path, "x.npy")


def test_a_part_that_is_no_array_is_named(tmp_path: Path) -> None:
    part = written(embeddings(np.float32, 5)[0], tmp_path, "part-000000.parquet")
    Path(part[1]).write_bytes(b"PAR1")
    with pytest.raises(DamagedError, match=r"_part-000000\.npy"):
        WRITER.assemble([part], [str(tmp_path / n) for n in WRITER.files("x.npy")])
