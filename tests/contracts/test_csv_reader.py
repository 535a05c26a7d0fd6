"""CSV and TSV: every field as it stands in the file, malformed records as rows of their own, columns that are told."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from packhorse.data import RESCUED, Chunk, Position
from packhorse.errors import InputError, UsageError
from packhorse.readers import csv as csv_reader
from packhorse.readers import lines, open_input
from packhorse.readers.options import ReaderOptions
from packhorse.stages import Reader

START = Position(0, 0)


def opened(folder: Path, content: bytes, name: str = "rows.csv", **options: object) -> Reader:
    (folder / name).write_bytes(content)
    return open_input(str(folder / name), options=ReaderOptions(**options))  # type: ignore[arg-type]


def values(reader: Reader, start: Position = START) -> list[list[str | None]]:
    names = [name for name in reader.schema().names if name != RESCUED]
    return [list(row.values()) for chunk in reader.read(start, names, []) for row in chunk.table.to_pylist()]


def errors(reader: Reader) -> dict[int, tuple[str, str]]:
    """Kind and raw record of each row in error."""
    found: dict[int, tuple[str, str]] = {}
    first = 0
    for chunk in reader.read(START, [RESCUED], []):
        raw = chunk.table[RESCUED].to_pylist()
        found |= {first + i: (error.kind, raw[i]) for i, error in chunk.errors.items()}
        assert {i for i, text in enumerate(raw) if text is not None} == set(chunk.errors)
        first += len(raw)
    return found


def with_writer(rows: list[list[str]], **dialect: object) -> bytes:
    target = io.StringIO(newline="")
    csv.writer(target, **dialect).writerows(rows)  # type: ignore[arg-type]
    return target.getvalue().encode()


def test_fields_are_strings_as_they_stand_there(tmp_path: Path) -> None:
    content = b'id,text\n01234,NA\n,""\n x , 1.50\ntrue,2020-01-01\nNULL,nan\n5" disk,"a ""b"" c"\n'
    assert values(opened(tmp_path, content)) == [
        ["01234", "NA"], ["", ""], [" x ", " 1.50"], ["true", "2020-01-01"], ["NULL", "nan"], ['5" disk', 'a "b" c'],
    ]  # fmt: skip


def test_line_ends_within_quotes_belong_to_the_field(tmp_path: Path) -> None:
    content = b'\xef\xbb\xbfa,b\r\n"x\r\ny","1\n\n2"\r\n\r\nz,3'
    assert values(opened(tmp_path, content)) == [["x\r\ny", "1\n\n2"], ["z", "3"]]


@pytest.mark.parametrize("size", [200_000, 10_000_000])
def test_a_field_may_be_large(tmp_path: Path, size: int) -> None:
    limit = csv.field_size_limit()
    rows = [["a", "b"], ["x" * size, "1"], ["y", 'q"' * (size // 2)], ["z", "3"]]
    assert values(opened(tmp_path, with_writer(rows))) == rows[1:]
    assert csv.field_size_limit() == limit, "the limit belongs to the whole process"


FIELDS = st.text(st.sampled_from("abé🙂\",;\n\r \t\0'\\"), max_size=6)


@given(
    rows=st.lists(st.lists(FIELDS, min_size=2, max_size=2), max_size=12),
    delimiter=st.sampled_from(",;|\t"), quoting=st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]),
    line_end=st.sampled_from(["\n", "\r\n"]), block=st.sampled_from([1, 7, 1 << 20]),
)  # fmt: skip
def test_what_pythons_writer_wrote_is_read(
    tmp_path_factory: pytest.TempPathFactory,
    rows: list[list[str]],
    delimiter: str,
    quoting: int,
    line_end: str,
    block: int,
) -> None:
    if line_end == "\n":
        quoting = csv.QUOTE_ALL  # else it leaves a field with \r without quotes, which then looks like a line's end
    content = with_writer([["a", "b"], *rows], delimiter=delimiter, quoting=quoting, lineterminator=line_end)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lines, "BLOCK_BYTES", block)
        patch.setattr(lines, "FIRST_BLOCK_BYTES", block)
        reader = opened(tmp_path_factory.getbasetemp(), content, delimiter=delimiter)
        assert values(reader) == rows
        chunks = list(reader.read(START, ["a"], []))
        where = [chunk.position(i) for chunk in chunks for i in range(len(chunk.table))]
        assert [values(reader, start) for start in where] == [rows[i:] for i in range(len(rows))]


@given(st.text(st.sampled_from('ab",\n\r'), max_size=30))
def test_one_record_is_what_pythons_strict_parser_makes_of_it(text: str) -> None:
    """The two are used on the same file, each where the other cannot."""
    found = io.StringIO(text, newline="\n").readlines()
    if not found or not found[0].strip("\r\n"):
        return
    try:
        theirs: list[str] | None = next(csv.reader(found, strict=True))
    except csv.Error:
        theirs = None
    assert csv_reader._Cursor(found, 0, ",", len(found)).record() == theirs


@given(st.binary(max_size=60) | st.text(st.sampled_from('ab",\n\ré'), max_size=60).map(str.encode))
def test_whatever_stands_there_reading_is_the_same_from_every_row(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    reader = opened(tmp_path_factory.getbasetemp(), b"a,b\n" + content)
    chunks = list(reader.read(START, ["a", "b"], []))
    whole = values(reader)
    marks = np.concatenate([chunk.marks[:-1] for chunk in chunks]) if chunks else np.array([])
    assert (np.diff(marks) > 0).all()
    for i, mark in enumerate(marks):
        assert values(reader, Position(0, int(mark))) == whole[i:]


@pytest.mark.parametrize(
    ("line", "kind"),
    [
        (b"only one", "wrong_number_of_fields"),
        (b"1,2,3", "wrong_number_of_fields"),
        (b'"1\n2",3,4', "wrong_number_of_fields"),
        (b'"a"b,1', "invalid_csv"),
        (b'1,"a" ', "invalid_csv"),
        (b"a\rb,1", "invalid_csv"),
        (b"caf\xe9,1", "invalid_utf8"),
        (b'"caf\xe9, and\nmore",1', "invalid_utf8"),
    ],
)
def test_a_bad_record_is_an_error_in_its_row_and_is_kept(tmp_path: Path, line: bytes, kind: str) -> None:
    reader = opened(tmp_path, b"a,b\n0,good\n" + line + b"\n2,good\n")
    assert values(reader) == [["0", "good"], [None, None], ["2", "good"]]
    assert errors(reader) == {1: (kind, line.decode("utf-8", "backslashreplace"))}


@pytest.mark.parametrize("after", [b"", b'x,"quoted"\n', b'x,"a, ""b"""\n'])
def test_a_quote_that_is_not_closed_costs_one_line(tmp_path: Path, after: bytes) -> None:
    good = b"".join(b"%d,good\n" % i for i in range(500))
    reader = opened(tmp_path, b'a,b\n1,"open\n' + good + after)
    found = values(reader)
    assert found[:501] == [[None, None], *([str(i), "good"] for i in range(500))]
    assert len(found) == 501 + bool(after)
    assert errors(reader) == {0: ("unclosed_quote", '1,"open')}


def test_a_stray_quote_in_every_line_costs_every_line_and_no_more(tmp_path: Path) -> None:
    """Whether it begins within quotes or not, each line ends within quotes: looked through to the end anew for each of
    them, these lines would take half an hour."""
    reader = opened(tmp_path, b"a,b\n" + b'x","y\n' * 50_000 + b"1,2\n")
    found = [
        (len(chunk.table), {error.kind for error in chunk.errors.values()}) for chunk in reader.read(START, ["a"], [])
    ]
    assert sum(count for count, _ in found) == 50_001
    assert {kind for _, kinds in found for kind in kinds} == {"unclosed_quote"}


@given(
    text=st.lists(st.sampled_from(['a","b\n', "x,y\n", '","', '"', ",", "a", "\n", "\r\n"]), max_size=30).map("".join),
    limit=st.sampled_from([3, 12, 40]), few=st.sampled_from([1, 2, 256]), is_last=st.booleans(),
)  # fmt: skip
def test_after_a_malformed_record_reading_goes_on_at_its_second_line(
    text: str, limit: int, few: int, is_last: bool
) -> None:
    found = io.StringIO(text, newline="\n").readlines()
    marks = np.cumsum([0, *map(len, found)])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(csv_reader, "MAX_RECORD_BYTES", limit)
        patch.setattr(csv_reader, "FEW_ROWS", few)
        records = csv_reader.parse(found, marks, is_last, ",")
    begin, expected = 0, []
    while begin < len(found):
        cursor = csv_reader._Cursor(found, begin, ",", len(found))
        row = cursor.record()
        fits = cursor.stop == begin + 1 or marks[cursor.stop] - marks[begin] <= limit
        if row is None and cursor.is_open and not is_last and marks[cursor.stop] - marks[begin] <= limit:
            break
        stop = cursor.stop if row is not None and fits else begin + 1
        if found[begin].strip("\r\n"):
            expected.append((begin, stop, len(row) if row is not None and fits else 0))
        begin = stop
    assert list(zip(records.starts, records.stops, records.widths, strict=True)) == expected
    assert records.used == begin


@pytest.mark.parametrize("block", [5, 64, 1 << 20])
def test_how_far_a_quote_is_looked_for_does_not_depend_on_blocks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int
) -> None:
    monkeypatch.setattr(csv_reader, "MAX_RECORD_BYTES", 20)
    monkeypatch.setattr(lines, "BLOCK_BYTES", block)
    monkeypatch.setattr(lines, "FIRST_BLOCK_BYTES", block)
    fits, too_long = b'1,"a\nbbbbbbbbbbbbb"\n', b'1,"a\nb,bbbbbbbbbbb",\n'
    assert len(fits) == 20
    reader = opened(tmp_path, b"a,b\n" + fits + too_long + b'2,"' + b"c" * 50 + b'"\n')
    assert values(reader) == [["1", "a\nbbbbbbbbbbbbb"], [None, None], [None, None], ["2", "c" * 50]]
    assert [kind for kind, _ in errors(reader).values()] == ["unclosed_quote", "wrong_number_of_fields"]


def test_there_is_no_column_for_rescued_records_where_there_are_none(tmp_path: Path) -> None:
    assert opened(tmp_path, b"a,b\n1,2\n").schema().names == ["a", "b"]
    assert opened(tmp_path, b"a,b\n1\n").schema().names == ["a", "b", RESCUED]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a,b,a\n1,2,3\n", "two columns are named 'a'"),
        (b"a,,b\n1,2,3\n", "column 2 has no name"),
        (RESCUED.encode() + b",b\n1,2\n", RESCUED),
    ],
)
def test_names_that_no_column_can_have_are_refused(tmp_path: Path, content: bytes, message: str) -> None:
    with pytest.raises(UsageError, match=rf"rows\.csv.*{message}.*--no-header"):
        opened(tmp_path, content)
    assert opened(tmp_path, content, header=False).schema().names[0] == "column_0"


@pytest.mark.parametrize("content", [b'"a,b\n1,2\n', b"caf\xe9,b\n1,2\n"])
def test_a_header_that_is_none_is_named(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(InputError, match=r"rows\.csv.*first line"):
        opened(tmp_path, content)


def test_without_a_header_the_first_line_is_a_row(tmp_path: Path) -> None:
    reader = opened(tmp_path, b"1,a\n2,b\n", header=False)
    assert (reader.schema().names, values(reader)) == (["column_0", "column_1"], [["1", "a"], ["2", "b"]])


@pytest.mark.parametrize("content", [b"1,a\r2,b\r", b'"open\n'])
def test_without_a_header_some_record_has_to_be_well_formed(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(InputError, match=r"rows\.csv.*no record.*well formed"):
        opened(tmp_path, content, header=False)


def test_files_have_one_header(tmp_path: Path) -> None:
    (tmp_path / "1.csv").write_bytes(b"a,b\n1,2\n")
    (tmp_path / "2.csv").write_bytes(b"")
    (tmp_path / "3.csv").write_bytes(b"a,b\r\n3,4")
    assert values(open_input(str(tmp_path))) == [["1", "2"], ["3", "4"]]
    (tmp_path / "4.csv").write_bytes(b"a,c\n")
    with pytest.raises(InputError, match=r"4\.csv.*1\.csv.*'b' there, 'c' here"):
        open_input(str(tmp_path))


@pytest.mark.parametrize("content", [b"", b"\n\n", b"\xef\xbb\xbf"])
def test_a_file_without_lines_has_no_columns_and_no_rows(tmp_path: Path, content: bytes) -> None:
    reader = opened(tmp_path, content)
    assert (reader.schema().names, values(reader)) == ([], [])


@pytest.mark.parametrize("delimiter", ["", ",,", '"', "\n", "\r"])
def test_a_delimiter_is_one_character(tmp_path: Path, delimiter: str) -> None:
    with pytest.raises(UsageError, match=r"--delimiter.*one character"):
        opened(tmp_path, b"a,b\n", delimiter=delimiter)


@pytest.mark.parametrize("delimiter", [";", "\t", "\\t", "§"])
def test_a_delimiter_can_be_chosen(tmp_path: Path, delimiter: str) -> None:
    between = {"\\t": "\t"}.get(delimiter, delimiter)
    content = f'a{between}b\n"1{between}2"{between}3,4\n'.encode()
    assert values(opened(tmp_path, content, delimiter=delimiter)) == [[f"1{between}2", "3,4"]]


@pytest.mark.parametrize("name", ["rows.tsv", "rows.tab"])
def test_tsv_has_no_quoting(tmp_path: Path, name: str) -> None:
    content = b'a\tb\n"x\ty"\n\n""\t \r\n\t\none\n1\t2\t3\n"open\t5\n'
    reader = opened(tmp_path, content, name)
    assert values(reader) == [['"x', 'y"'], ['""', " "], ["", ""], [None, None], [None, None], ['"open', "5"]]
    assert errors(reader) == {3: ("wrong_number_of_fields", "one"), 4: ("wrong_number_of_fields", "1\t2\t3")}


def test_what_a_record_weighs_is_its_bytes(tmp_path: Path) -> None:
    (chunk,) = opened(tmp_path, b'a,b\n1,2\n\n"x\ny",z\n3,4').read(START, ["a"], [])
    assert isinstance(chunk, Chunk)
    assert chunk.row_bytes.tolist() == [4, 8, 3] and chunk.marks.tolist() == [4, 9, 17, 20]
