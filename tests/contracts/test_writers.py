"""One suite over the writers of whole tables; then what Parquet and JSON lines each promise alone."""

from __future__ import annotations

import datetime
import subprocess
import sys
from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from packhorse.data import JSON_TEXT, RAW_LINE
from packhorse.writers import make_writer
from tests.contracts.csv_rows import rows_of_csv
from tests.null.runs import strict_lines

NAN, INF = float("nan"), float("inf")
EXTENSIONS = (".parquet", ".jsonl", ".csv")
every_format = pytest.mark.parametrize("extension", EXTENSIONS)
ERROR = pa.struct([("kind", pa.large_string()), ("message", pa.large_string())])


def vectors(rows: Sequence[Sequence[float | None] | None], kind: pa.DataType, width: int) -> pa.Array:
    return pa.array(rows, pa.list_(pa.field("element", kind), width))


def output(count: int = 50, first: int = 0) -> pa.Table:
    """A table as the finish stage makes it: input columns, predictions, error."""
    ids = range(first, first + count)
    return pa.table({
        "text": pa.array([None if i % 9 == 4 else f"naïve 漢字 🙂 \u2028 \"{i}\"\n" for i in ids], pa.large_string()),
        "n": pa.array([i * 10**15 for i in ids], pa.int64()),
        "embedding": vectors([None if i % 9 == 4 else [i / 7, -i / 3, 0.0] for i in ids], pa.float32(), 3),
        "error": pa.array([{"kind": "null_text", "message": "is null"} if i % 9 == 4 else None for i in ids], ERROR),
    })  # fmt: skip


def read_back(path: Path) -> list[dict]:
    if path.suffix == ".csv":
        return rows_of_csv(path, output().schema)
    if path.suffix == ".jsonl":
        return strict_lines(path)
    return pq.read_table(path, page_checksum_verification=True).to_pylist()


def written(table: pa.Table, path: Path) -> Path:
    make_writer(path.suffix).write(table, [str(path)])
    return path


def json_of(column: pa.Array, folder: Path) -> list[Any]:
    return [row["x"] for row in strict_lines(written(pa.table({"x": column}), folder / "x.jsonl"))]


@every_format
def test_rows_read_back_equal(extension: str, tmp_path: Path) -> None:
    found = read_back(written(output(), tmp_path / f"a{extension}"))
    expected = output().to_pylist()
    for row in (*found, *expected):  # the digits of a float32 are those that make the same float32
        row["embedding"] = row["embedding"] and np.float32(row["embedding"]).tolist()
    assert found == expected


@every_format
def test_the_same_table_gives_the_same_bytes(extension: str, tmp_path: Path) -> None:
    one = written(output(), tmp_path / f"a{extension}").read_bytes()
    assert written(output(), tmp_path / f"b{extension}").read_bytes() == one


@every_format
def test_no_rows_can_be_written(extension: str, tmp_path: Path) -> None:
    assert read_back(written(output(0), tmp_path / f"a{extension}")) == []


@every_format
def test_one_file_of_the_parts_is_their_rows_in_order(extension: str, tmp_path: Path) -> None:
    tables = [output(50), output(0), output(30, first=50), output(1, first=80)]
    paths = [str(written(t, tmp_path / f"{i}{extension}")) for i, t in enumerate(tables)]
    whole, again = tmp_path / f"whole{extension}", tmp_path / f"again{extension}"
    make_writer(extension).assemble([[path] for path in paths], [str(whole)])
    make_writer(extension).assemble([[path] for path in paths], [str(again)])
    assert read_back(whole) == read_back(written(output(81), tmp_path / f"all{extension}"))
    assert whole.read_bytes() == again.read_bytes()


@every_format
def test_one_file_of_one_part_has_its_columns(extension: str, tmp_path: Path) -> None:
    part = str(written(output(0), tmp_path / f"0{extension}"))
    make_writer(extension).assemble([[part]], [str(tmp_path / f"whole{extension}")])
    assert read_back(tmp_path / f"whole{extension}") == []
    if extension == ".parquet":
        assert pq.read_schema(tmp_path / "whole.parquet").equals(output(0).schema)


# -- Parquet


def test_parquet_keeps_types_and_metadata(tmp_path: Path) -> None:
    table = output().replace_schema_metadata({"made by": "a test"})
    found = pq.read_table(written(table, tmp_path / "a.parquet"))
    assert found.schema.equals(table.schema, check_metadata=True)


def test_a_flipped_bit_in_a_page_is_found_by_its_checksum(tmp_path: Path) -> None:
    path = written(output(2_000), tmp_path / "a.parquet")
    content, columns = path.read_bytes(), pq.read_metadata(path).row_group(0)
    unnoticed = 0
    for column in (columns.column(i) for i in range(3)):  # the large ones: text, n, embedding
        begin = column.dictionary_page_offset or column.data_page_offset
        for place in range(begin + 200, begin + column.total_compressed_size, column.total_compressed_size // 9):
            damaged = bytearray(content)
            damaged[place] ^= 1
            path.write_bytes(damaged)
            with pytest.raises((pa.ArrowException, OSError)):
                pq.read_table(path, page_checksum_verification=True)
            unnoticed += can_be_read(path)
    assert unnoticed  # without the checksums, some would have been


def can_be_read(path: Path) -> bool:
    try:
        pq.read_table(path)
    except (pa.ArrowException, OSError):
        return False
    return True


@pytest.mark.parametrize("kind", [pa.float16(), pa.float32(), pa.float64()])
def test_vectors_are_byte_split_and_have_no_dictionary(kind: pa.DataType, tmp_path: Path) -> None:
    rows = [None if i == 3 else [float(i % 5)] * 4 for i in range(200)]
    table = pa.table({"text": ["a"] * 200, "embedding": vectors(rows, kind, 4)})
    path = written(table, tmp_path / "a.parquet")
    group = pq.read_metadata(path).row_group(0)
    columns = {group.column(i).path_in_schema: group.column(i) for i in range(group.num_columns)}
    split = columns["embedding.list.element"]
    assert "BYTE_STREAM_SPLIT" in split.encodings and not split.has_dictionary_page
    assert "RLE_DICTIONARY" in columns["text"].encodings
    assert {c.compression for c in columns.values()} == {"ZSTD"}
    assert pq.read_table(path)["embedding"].equals(table["embedding"])


def test_nested_input_columns_can_be_written(tmp_path: Path) -> None:
    table = pa.table({
        "a.b": ["dotted"],
        "map": pa.array([[("k", [1.5])]], pa.map_(pa.string(), pa.list_(pa.float32()))),
        "struct": pa.array([{"x": {"y": [1, None]}}]),
        "boxes": vectors([[1.0, 2.0]], pa.float32(), 2),
    })  # fmt: skip
    assert pq.read_table(written(table, tmp_path / "a.parquet")).equals(table)


# -- JSON lines


def test_numbers_that_json_has_not_are_null_at_any_depth(tmp_path: Path) -> None:
    odd = [1.5, NAN, INF, -INF, None]
    plain = [1.5, None, None, None, None]
    for kind in (pa.float16(), pa.float32(), pa.float64()):
        assert json_of(pa.array(odd, kind), tmp_path) == plain
        assert json_of(pa.array([odd], pa.list_(kind)), tmp_path) == [plain]
        assert json_of(vectors([odd, None], kind, 5), tmp_path) == [plain, None]
        assert json_of(
            pa.array([{"a": [{"b": NAN}]}], pa.struct([("a", pa.list_(pa.struct([("b", kind)])))])), tmp_path
        ) == [{"a": [{"b": None}]}]


def test_numbers_that_json_has_not_are_null_in_a_map(tmp_path: Path) -> None:
    assert json_of(pa.array([[("k", NAN)]], pa.map_(pa.string(), pa.float64())), tmp_path) == [[["k", None]]]


def test_floats_have_the_shortest_digits_that_give_them_back(tmp_path: Path) -> None:
    table = pa.table({"x": pa.array([0.1, 1 / 3, 1e-30, 2.5], pa.float32()), "y": [0.1, 1 / 3, 1e-300, 1.0]})
    lines = written(table, tmp_path / "a.jsonl").read_text().splitlines()
    assert lines == [
        '{"x": 0.1, "y": 0.1}',
        '{"x": 0.33333334, "y": 0.3333333333333333}',
        '{"x": 1e-30, "y": 1e-300}',
        '{"x": 2.5, "y": 1.0}',
    ]


def test_values_without_a_json_type_are_text(tmp_path: Path) -> None:
    when = datetime.datetime(2024, 2, 29, 12, 30, tzinfo=datetime.UTC)
    assert json_of(pa.array([b"\x00\xff", None]), tmp_path) == ["AP8=", None]
    assert json_of(pa.array([when], pa.timestamp("us", "UTC")), tmp_path) == ["2024-02-29T12:30:00+00:00"]
    assert json_of(pa.array([when.date()]), tmp_path) == ["2024-02-29"]
    assert json_of(pa.array([Decimal("1.10")]), tmp_path) == ["1.10"]
    assert json_of(pa.array(["a", None, "a"]).dictionary_encode(), tmp_path) == ["a", None, "a"]


def test_times_beyond_those_of_python_do_not_end_the_run(tmp_path: Path) -> None:
    assert len(json_of(pa.array([10**18, -(10**18), None], pa.timestamp("us")), tmp_path)) == 3


def test_nanoseconds_need_no_other_package(tmp_path: Path) -> None:
    """pyarrow makes Python objects of them only where pandas is installed, and packhorse does not depend on it."""
    program = f"""
import sys

class WithoutPandas:
    def find_spec(self, name, *_):
        if name.partition(".")[0] == "pandas":
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, WithoutPandas())
import pyarrow as pa
from packhorse.writers import make_writer
table = pa.table({{"x": pa.array([1_700_000_000_123_456_789], pa.timestamp("ns"))}})
make_writer(".jsonl").write(table, [{str(tmp_path / "a.jsonl")!r}])
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-300:]
    assert strict_lines(tmp_path / "a.jsonl") == [{"x": "2023-11-14T22:13:20.123456789"}]


def test_json_text_is_json_again(tmp_path: Path) -> None:
    field = pa.field("x", pa.large_string(), metadata=JSON_TEXT)
    table = pa.table([pa.array(['{"a": [1.0, null]}', None, "3"], pa.large_string())], schema=pa.schema([field]))
    assert strict_lines(written(table, tmp_path / "a.jsonl")) == [{"x": {"a": [1.0, None]}}, {"x": None}, {"x": 3}]


def test_a_slice_of_a_table_is_that_slice(tmp_path: Path) -> None:
    found = strict_lines(written(output(50).slice(13, 7), tmp_path / "a.jsonl"))
    assert [row["n"] for row in found] == [i * 10**15 for i in range(13, 20)]
    assert [row["embedding"] is None for row in found] == [i % 9 == 4 for i in range(13, 20)]


def test_a_raw_line_stands_first_as_it_was(tmp_path: Path) -> None:
    raw = [b'{"b": 1.0,"a":  1e400 }', b"{}", b"  { }  "]
    table = pa.table({RAW_LINE: pa.array(raw, pa.large_binary()), "label": ["x", "y", "z"]})
    lines = written(table, tmp_path / "a.jsonl").read_text().splitlines()
    assert lines == ['{"b": 1.0,"a":  1e400, "label": "x"}', '{"label": "y"}', '{"label": "z"}']
