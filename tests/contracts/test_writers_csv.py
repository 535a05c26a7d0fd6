"""CSV against readers that others wrote: Python's csv, pandas, pyarrow."""

from __future__ import annotations

import datetime
import json
import math
import tempfile
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from packhorse.data import JSON_TEXT
from packhorse.errors import UsageError
from packhorse.writers import make_writer
from tests.contracts.csv_rows import records_of_csv, texts_of_csv

NAN, INF = float("nan"), float("inf")
characters = st.one_of(st.sampled_from(",\"\n\r\t;'\\ =+-@#\u2028\x85\ufeff\x00\x0b漢🙂"), st.characters(codec="utf-8"))
texts = st.text(characters, max_size=12)
rows = st.lists(
    st.tuples(
        st.none() | texts,
        st.none() | st.integers(-(2**63), 2**63 - 1),
        st.none() | st.floats(),
        st.none() | st.floats(width=32),
        st.none() | st.lists(st.none() | texts, max_size=3),
    ),
    max_size=8,
)


def written(table: pa.Table, path: Path) -> Path:
    make_writer(".csv").write(table, [str(path)])
    return path


def fields(column: pa.Array | pa.ChunkedArray, folder: Path, field: pa.Field | None = None) -> list[str | None]:
    """A column's fields as they are read back."""
    schema = pa.schema([field or pa.field("x", column.type), pa.field("y", pa.int8())])
    table = pa.table([column, pa.array([1] * len(column), pa.int8())], schema=schema)
    return [row["x"] for row in texts_of_csv(written(table, folder / "a.csv"))]


@given(rows, st.tuples(texts, texts).filter(lambda n: n[0] != n[1]))
@settings(deadline=None, max_examples=150)
def test_any_rows_read_back_equal(values: list[tuple], names: tuple[str, str]) -> None:
    kinds = [pa.large_string(), pa.int64(), pa.float64(), pa.float32(), pa.list_(pa.large_string())]
    columns = [pa.array([row[i] for row in values], kind) for i, kind in enumerate(kinds)]
    table = pa.table(columns, names=[*(f"{i}{name}" for i, name in enumerate(names)), "f", "g", "h"])
    with tempfile.TemporaryDirectory() as folder:
        path = written(table, Path(folder) / "a.csv")
        header, *records = records_of_csv(path)
        read = texts_of_csv(path)
    assert header == table.column_names
    assert [record[0] for record in records] == [row[0] or "" for row in values]
    for row, record, texts_read in zip(values, records, read, strict=True):
        a, b, c, d, e = texts_read.values()
        assert a == row[0]
        assert (None if b is None else int(b)) == row[1]
        assert same_float(row[2], c, float) and same_float(row[3], d, np.float32)
        assert (None if e is None else json.loads(e)) == row[4]
        assert record[4] == (e or "")


def same_float(value: float | None, text: str | None, kind: Any) -> bool:
    """The digits are those of exactly this float."""
    if value is None or text is None:
        return value is None and text is None
    found = kind(text)
    return bool(math.isnan(value) and math.isnan(found)) or (
        found == kind(value) and math.copysign(1, found) == math.copysign(1, value)
    )


def test_pandas_reads_every_text_as_it_was(tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    values = [
        "01234",
        "NA",
        "null",
        "nan",
        "1e5",
        "True",
        " a ",
        'say "x", y',
        "line\nfeed",
        "\r",
        "=1+1",
        "",
        "2024-01-01",
    ]
    path = written(pa.table({"text": pa.array(values, pa.large_string()), "n": range(len(values))}), tmp_path / "a.csv")
    frame = pandas.read_csv(path, dtype=str, keep_default_na=False)
    assert frame["text"].tolist() == values


def test_only_what_must_be_quoted_is(tmp_path: Path) -> None:
    table = pa.table({
        "a": pa.array(["plain", "", None, "a,b", 'a"b', "a\nb", "a\rb", " padded ", "=1+1"], pa.large_string()),
        "b, c": pa.array([1, -2, None, 0, 0, 0, 0, 0, 0], pa.int64()),
    })  # fmt: skip
    assert written(table, tmp_path / "a.csv").read_bytes() == (
        b'a,"b, c"\nplain,1\n"",-2\n,\n"a,b",0\n"a""b",0\n"a\nb",0\n"a\rb",0\n padded ,0\n=1+1,0\n'
    )


def test_numbers(tmp_path: Path) -> None:
    odd = [0.1, 1 / 3, 1e30, NAN, INF, -INF, -0.0, None]
    assert fields(pa.array(odd, pa.float64()), tmp_path) == [
        "0.1", "0.3333333333333333", "1e+30", "nan", "inf", "-inf", "-0.0", None,
    ]  # fmt: skip
    assert fields(pa.array(odd[:3], pa.float32()), tmp_path) == ["0.1", "0.33333334", "1e+30"]
    assert fields(pa.array(odd[:2], pa.float16()), tmp_path) == ["0.1", "0.3333"]
    assert fields(pa.array([2**63 - 1, None, 0]), tmp_path) == [str(2**63 - 1), None, "0"]
    assert fields(pa.array([True, False, None]), tmp_path) == ["true", "false", None]


def test_values_without_a_text_of_their_own_are_those_of_json_lines(tmp_path: Path) -> None:
    when = datetime.datetime(2024, 2, 29, 12, 30, tzinfo=datetime.UTC)
    assert fields(pa.array([b"\x00\xff", b"", None]), tmp_path) == ["AP8=", "", None]
    assert fields(pa.array([when], pa.timestamp("us", "UTC")), tmp_path) == ["2024-02-29T12:30:00+00:00"]
    assert fields(pa.array([1_700_000_000_123_456_789], pa.timestamp("ns")), tmp_path) == [
        "2023-11-14T22:13:20.123456789"
    ]
    assert fields(pa.array([Decimal("1.10"), None]), tmp_path) == ["1.10", None]
    assert fields(pa.array(["a", None, "", "a"]).dictionary_encode(), tmp_path) == ["a", None, "", "a"]


def test_lists_structs_and_vectors_are_json(tmp_path: Path) -> None:
    nested = pa.array([{"a": ['x, "y"\n', None]}, None], pa.struct([("a", pa.list_(pa.string()))]))
    assert fields(nested, tmp_path) == ['{"a": ["x, \\"y\\"\\n", null]}', None]
    vector = pa.array([[0.1, NAN], None, [1, 2]], pa.list_(pa.float32(), 2))
    assert fields(vector, tmp_path) == ["[0.1, null]", None, "[1.0, 2.0]"]
    assert fields(pa.array([[-128, 127], None], pa.list_(pa.int8(), 2)), tmp_path) == ["[-128, 127]", None]


def test_json_text_stands_as_it_is(tmp_path: Path) -> None:
    field = pa.field("x", pa.large_string(), metadata=JSON_TEXT)
    kept = ['{"a": [1.0, null]}', None, "3", "null"]
    assert fields(pa.array(kept, pa.large_string()), tmp_path, field) == kept


@pytest.mark.parametrize("name", ["plain", 'line\nfeed, "quoted"', '"', "\n\n"])
def test_one_file_has_the_names_once(tmp_path: Path, name: str) -> None:
    table = pa.table({name: pa.array(["x", 'y"\n', None, "\n"], pa.large_string()), "n": range(4)})
    slices = [table.slice(0, 0), table.slice(0, 1), table.slice(1, 0), table.slice(1, 3)]
    parts = [[str(written(rows, tmp_path / f"{i}.csv"))] for i, rows in enumerate(slices)]
    make_writer(".csv").assemble(parts, [str(tmp_path / "whole.csv")])
    assert (tmp_path / "whole.csv").read_bytes() == written(table, tmp_path / "all.csv").read_bytes()
    assert texts_of_csv(tmp_path / "0.csv") == []


def test_a_single_column_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--keep"):
        written(pa.table({"x": [None]}), tmp_path / "a.csv")
