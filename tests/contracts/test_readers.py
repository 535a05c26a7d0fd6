"""One suite over every reader: the same rows as Parquet, as lines of every kind, from standard input and in memory."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import sys
from collections.abc import Callable
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


def compressed(data: bytes, codec: str) -> bytes:
    """By the standard library where it can, so that not one library writes and reads."""
    if codec == "zst":
        sink = pa.BufferOutputStream()
        with pa.CompressedOutputStream(sink, "zstd") as stream:
            stream.write(data)
        return sink.getvalue().to_pybytes()
    return gzip.compress(data, mtime=0) if codec == "gz" else bz2.compress(data)


def compressed_lines(codec: str, suffix: str = "jsonl") -> Callable[[pa.Table, Path], object]:
    def save(table: pa.Table, folder: Path) -> object:
        for name, part in zip("abc", thirds(table), strict=True):
            TEXT_FORMATS[suffix](part, folder / f"{name}.{suffix}")
            plain = folder / f"{name}.{suffix}"
            (folder / f"{name}.{suffix}.{codec}").write_bytes(compressed(plain.read_bytes(), codec))
            plain.unlink()
        return str(folder)

    return save


def save_csv(table: pa.Table, path: Path) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(table.column_names)
        writer.writerows(["" if v is None else v for v in row.values()] for row in table.to_pylist())


def save_tsv(table: pa.Table, path: Path) -> None:
    lines = ["\t".join("" if v is None else str(v) for v in row.values()) for row in table.to_pylist()]
    path.write_text("\n".join(["\t".join(table.column_names), *lines, ""]), encoding="utf-8")


def save_text(table: pa.Table, path: Path) -> None:
    path.write_text("".join(f"{text or ''}\n" for text in table["text"].to_pylist()), encoding="utf-8")


TEXT_FORMATS = {"jsonl": save_lines, "csv": save_csv, "tsv": save_tsv, "txt": save_text}


def one_file(suffix: str) -> Callable[[pa.Table, Path], object]:
    def save(table: pa.Table, folder: Path) -> object:
        TEXT_FORMATS[suffix](table, folder / f"rows.{suffix}")
        return str(folder)

    return save


class Piped:
    """What stands in the place of sys.stdin."""

    def __init__(self, data: bytes) -> None:
        self.buffer = io.BytesIO(data)

    def isatty(self) -> bool:
        return False


def standard_input(table: pa.Table, folder: Path) -> object:
    save_lines(table, folder / "piped.jsonl")
    sys.stdin = Piped((folder / "piped.jsonl").read_bytes())  # type: ignore[assignment]
    return "-"


@pytest.fixture(autouse=True)
def _same_stdin_afterwards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", sys.stdin)


def as_strings(table: pa.Table) -> pa.Table:
    """The rows as CSV and TSV hold them."""
    columns = {n: ["" if v is None else str(v) for v in table[n].to_pylist()] for n in table.column_names}
    return pa.table({name: pa.array(values, pa.large_string()) for name, values in columns.items()})


def expected(kind: str, table: pa.Table) -> pa.Table:
    """What is read of these rows."""
    if not kind.startswith(("csv", "tsv", "text")):
        return table
    return as_strings(table).select(["text"] if kind == "text" else table.column_names)


FORMATS: dict[str, Callable[[pa.Table, Path], object]] = {
    "parquet": parquet(None),
    "parquet_small_groups": parquet(7),
    "parquet_files": parquet_files,
    "lines": lines,
    "lines_files": lines_files,
    "lines_gz": compressed_lines("gz"),
    "lines_zst": compressed_lines("zst"),
    "lines_bz2": compressed_lines("bz2"),
    "lines_stdin": standard_input,
    "csv": one_file("csv"),
    "csv_gz": compressed_lines("gz", "csv"),
    "tsv": one_file("tsv"),
    "text": one_file("txt"),
    "table": lambda table, _: table,
    "table_in_pieces": lambda table, _: pa.concat_tables(thirds(table)),
}
every_format = pytest.mark.parametrize("kind", FORMATS)


def open_rows(kind: str, table: pa.Table, folder: Path) -> Reader:
    source = FORMATS[kind](table, folder)
    return open_input(source) if isinstance(source, str) else TableReader(source)


def read(reader: Reader, start: Position = START) -> list[dict]:
    columns = reader.schema().names
    return [row for chunk in reader.read(start, columns, TEXTS) for row in chunk.table.to_pylist()]


def positions(reader: Reader) -> list[Position]:
    """Before each row, and after the last."""
    chunks = list(reader.read(START, TEXTS, TEXTS))
    before = [chunk.position(row) for chunk in chunks for row in range(len(chunk.table))]
    return [*before, chunks[-1].position(len(chunks[-1].table))]


@every_format
def test_rows_come_out_as_they_went_in(kind: str, tmp_path: Path) -> None:
    table = rows(60)
    reader = open_rows(kind, table, tmp_path)
    as_read = expected(kind, table)
    assert read(reader) == as_read.to_pylist()
    assert [(f.name, f.type) for f in reader.schema()] == [(f.name, f.type) for f in as_read.schema]


@every_format
def test_rows_give_the_same_predictions(kind: str, tmp_path: Path, null_model: Path) -> None:
    table = rows(60)
    (tmp_path / "in").mkdir()
    run(null_model, FORMATS[kind](table, tmp_path / "in"), tmp_path / "out", shard_rows=17, text_column="text")
    assert predicted(rows_of(tmp_path / "out")) == predictions(expected(kind, table)["text"].to_pylist())


@every_format
def test_reading_goes_on_from_every_mark(kind: str, tmp_path: Path) -> None:
    table = rows(60)
    reader = open_rows(kind, table, tmp_path)
    for row, position in enumerate(positions(reader)):
        assert read(reader, position) == expected(kind, table).slice(row).to_pylist()


@every_format
def test_reading_goes_on_at_the_seams_of_large_chunks(kind: str, tmp_path: Path) -> None:
    table = rows(36_000)
    reader = open_rows(kind, table, tmp_path)
    where = positions(reader)
    assert len(where) == len(table) + 1
    for row in (12_000, 16_383, 16_384, 16_385, 18_000, 32_768, 35_999):
        two_chunks = islice(reader.read(where[row], reader.schema().names, TEXTS), 2)
        found = pa.concat_tables(chunk.table for chunk in two_chunks)
        assert found.slice(0, 5).to_pylist() == expected(kind, table).slice(row, 5).to_pylist()


@every_format
def test_a_chunk_has_a_rising_mark_before_each_row_and_after_the_last(kind: str, tmp_path: Path) -> None:
    for chunk in open_rows(kind, rows(60), tmp_path).read(START, TEXTS, TEXTS):
        assert len(chunk.marks) == len(chunk.row_bytes) + 1 == len(chunk.table) + 1
        assert (np.diff(chunk.marks) > 0).all() and (chunk.row_bytes > 0).all()


@every_format
def test_what_a_row_weighs_does_not_depend_on_where_reading_began(kind: str, tmp_path: Path) -> None:
    reader = open_rows(kind, rows(60), tmp_path)
    whole = [int(w) for chunk in reader.read(START, TEXTS, TEXTS) for w in chunk.row_bytes]
    for row, position in enumerate(positions(reader)):
        rest = [int(w) for chunk in reader.read(position, TEXTS, TEXTS) for w in chunk.row_bytes]
        assert rest == whole[row:]


@every_format
def test_progress_goes_from_0_to_1(kind: str, tmp_path: Path) -> None:
    reader = open_rows(kind, rows(60), tmp_path)
    shares = [reader.progress(position) for position in positions(reader)]
    assert (reader.progress(START), shares[-1]) == (0, 1)
    assert shares[0] < 0.01  # a header may stand before the first row
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


@pytest.mark.parametrize("kind", ["parquet", "parquet_files", "table", "csv", "tsv"])
def test_no_rows_still_have_columns(kind: str, tmp_path: Path) -> None:
    reader = open_rows(kind, rows(0), tmp_path)
    assert (reader.schema().names, read(reader)) == (COLUMNS, [])
    assert reader.num_rows() in (0, None)
    assert 0 <= reader.progress(START) <= 1


def test_a_table_has_one_fingerprint_however_it_is_in_pieces() -> None:
    table = rows(60)
    assert TableReader(table).fingerprint() == TableReader(pa.concat_tables(thirds(table))).fingerprint()
    assert TableReader(pa.concat_tables([table, table]).slice(60)).fingerprint() == TableReader(table).fingerprint()
