"""One suite over every reader: the same rows as Parquet, as JSON lines and in memory."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from packhorse.data import Position
from packhorse.readers import open_input
from packhorse.readers.table import TableReader
from packhorse.stages import Reader
from tests.null.reference import predicted, predictions, some_texts
from tests.null.runs import rows_of, run

COLUMNS, TEXTS = ["text", "n", "x"], ["text"]
START = Position(0, 0)


def rows(count: int) -> pa.Table:
    numbers = [None if i % 7 == 3 else i for i in range(count)]
    columns = {"text": some_texts(count), "n": numbers, "x": [i / 4 for i in range(count)]}
    return pa.table(columns, pa.schema([("text", pa.large_string()), ("n", pa.int64()), ("x", pa.float64())]))


def save_lines(table: pa.Table, path: Path) -> None:
    lines = [json.dumps(row, ensure_ascii=bool(i % 2)) + "\n" for i, row in enumerate(table.to_pylist())]
    path.write_text("".join(lines), encoding="utf-8")


def thirds(table: pa.Table) -> list[pa.Table]:
    a, b = len(table) // 3, len(table) // 2
    return [table.slice(0, a), table.slice(a, b - a), table.slice(b)]


def parquet(row_group_size: int | None) -> Callable[[pa.Table, Path], object]:
    def save(table: pa.Table, folder: Path) -> object:
        pq.write_table(table, folder / "rows.parquet", row_group_size=row_group_size)
        return str(folder)

    return save


def parquet_files(table: pa.Table, folder: Path) -> object:
    for name, part in zip("abc", thirds(table), strict=True):
        pq.write_table(part, folder / f"{name}.parquet", row_group_size=10)
    return str(folder)


def lines(table: pa.Table, folder: Path) -> object:
    save_lines(table, folder / "rows.jsonl")
    return str(folder)


def lines_files(table: pa.Table, folder: Path) -> object:
    for name, part in zip("abc", thirds(table), strict=True):
        save_lines(part, folder / f"{name}.jsonl")
    return str(folder)


FORMATS: dict[str, Callable[[pa.Table, Path], object]] = {
    "parquet": parquet(None),
    "parquet_small_groups": parquet(7),
    "parquet_files": parquet_files,
    "lines": lines,
    "lines_files": lines_files,
    "table": lambda table, _: table,
    "table_in_pieces": lambda table, _: pa.concat_tables(thirds(table)),
}
every_format = pytest.mark.parametrize("kind", FORMATS)


def open_rows(kind: str, table: pa.Table, folder: Path) -> Reader:
    source = FORMATS[kind](table, folder)
    return open_input(source) if isinstance(source, str) else TableReader(source)


def read(reader: Reader, start: Position = START, columns: Sequence[str] = COLUMNS) -> list[dict]:
    return [row for chunk in reader.read(start, columns, TEXTS) for row in chunk.table.to_pylist()]


def positions(reader: Reader) -> list[Position]:
    """Before each row, and after the last."""
    chunks = list(reader.read(START, COLUMNS, TEXTS))
    before = [Position(chunk.file, int(mark)) for chunk in chunks for mark in chunk.marks[:-1]]
    return [*before, Position(chunks[-1].file, int(chunks[-1].marks[-1]))]


@every_format
def test_rows_come_out_as_they_went_in(kind: str, tmp_path: Path) -> None:
    table = rows(60)
    reader = open_rows(kind, table, tmp_path)
    assert read(reader) == table.to_pylist()
    assert [(f.name, f.type) for f in reader.schema()] == [(f.name, f.type) for f in table.schema]


@every_format
def test_rows_give_the_same_predictions(kind: str, tmp_path: Path, null_model: Path) -> None:
    table = rows(60)
    (tmp_path / "in").mkdir()
    run(null_model, FORMATS[kind](table, tmp_path / "in"), tmp_path / "out", shard_rows=17)
    assert predicted(rows_of(tmp_path / "out")) == predictions(table["text"].to_pylist())


@every_format
def test_reading_goes_on_from_every_mark(kind: str, tmp_path: Path) -> None:
    table = rows(60)
    reader = open_rows(kind, table, tmp_path)
    for row, position in enumerate(positions(reader)):
        assert read(reader, position) == table.slice(row).to_pylist()


@every_format
def test_reading_goes_on_at_the_seams_of_large_chunks(kind: str, tmp_path: Path) -> None:
    table = rows(36_000)
    reader = open_rows(kind, table, tmp_path)
    where = positions(reader)
    assert len(where) == len(table) + 1
    for row in (12_000, 16_383, 16_384, 16_385, 18_000, 32_768, 35_999):
        two_chunks = islice(reader.read(where[row], COLUMNS, TEXTS), 2)
        found = pa.concat_tables(chunk.table for chunk in two_chunks)
        assert found.slice(0, 5).to_pylist() == table.slice(row, 5).to_pylist()


@every_format
def test_a_chunk_has_a_rising_mark_before_each_row_and_after_the_last(kind: str, tmp_path: Path) -> None:
    for chunk in open_rows(kind, rows(60), tmp_path).read(START, COLUMNS, TEXTS):
        assert len(chunk.marks) == len(chunk.row_bytes) + 1 == len(chunk.table) + 1
        assert (np.diff(chunk.marks) > 0).all() and (chunk.row_bytes > 0).all()


@every_format
def test_what_a_row_weighs_does_not_depend_on_where_reading_began(kind: str, tmp_path: Path) -> None:
    reader = open_rows(kind, rows(60), tmp_path)
    whole = [int(w) for chunk in reader.read(START, COLUMNS, TEXTS) for w in chunk.row_bytes]
    for row, position in enumerate(positions(reader)):
        rest = [int(w) for chunk in reader.read(position, COLUMNS, TEXTS) for w in chunk.row_bytes]
        assert rest == whole[row:]


@every_format
def test_progress_goes_from_0_to_1(kind: str, tmp_path: Path) -> None:
    reader = open_rows(kind, rows(60), tmp_path)
    shares = [reader.progress(position) for position in positions(reader)]
    assert (shares[0], shares[-1]) == (0, 1)
    assert (np.diff(shares) > 0).all()


@every_format
def test_the_number_of_rows_is_exact_or_unknown(kind: str, tmp_path: Path) -> None:
    assert open_rows(kind, rows(60), tmp_path).num_rows() in (60, None)


@every_format
def test_only_the_columns_asked_for_and_the_text_are_read(kind: str, tmp_path: Path) -> None:
    reader = open_rows(kind, rows(9), tmp_path)
    (names,) = {tuple(chunk.table.column_names) for chunk in reader.read(START, ["x"], TEXTS)}
    assert names == ("x", "text")


@every_format
def test_the_fingerprint_is_that_of_the_rows(kind: str, tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    one.mkdir()
    other.mkdir()
    reader = open_rows(kind, rows(60), one)
    assert json.loads(json.dumps(reader.fingerprint())) == reader.fingerprint()
    assert reader.fingerprint() == (open_input(str(one)) if reader.files[0][0] == "/" else reader).fingerprint()
    assert reader.fingerprint() != open_rows(kind, rows(61), other).fingerprint()


@pytest.mark.parametrize("kind", [k for k in FORMATS if "lines" not in k])
def test_no_rows_still_have_columns(kind: str, tmp_path: Path) -> None:
    reader = open_rows(kind, rows(0), tmp_path)
    assert (reader.schema().names, read(reader), reader.num_rows()) == (COLUMNS, [], 0)
    assert 0 <= reader.progress(START) <= 1


def test_a_table_has_one_fingerprint_however_it_is_in_pieces() -> None:
    table = rows(60)
    assert TableReader(table).fingerprint() == TableReader(pa.concat_tables(thirds(table))).fingerprint()
    assert TableReader(pa.concat_tables([table, table]).slice(60)).fingerprint() == TableReader(table).fingerprint()
