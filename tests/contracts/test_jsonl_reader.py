"""What JSON lines alone can hold: lines that are none, fields that come and go, values of other types."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from packhorse.data import RAW_LINE, RESCUED, Chunk, Position
from packhorse.errors import UsageError
from packhorse.readers import open_input
from tests.null.runs import strict_json

START = Position(0, 0)
MIB = 1 << 20


def read(path: Path, content: bytes, *columns: str) -> Chunk:
    """All rows, of all columns unless told, as the one chunk that they are."""
    path.write_bytes(content)
    reader = open_input(str(path))
    (chunk,) = reader.read(START, columns or reader.schema().names, ["text"])
    return chunk


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "rows.jsonl"


def kinds(chunk: Chunk) -> dict[int, str]:
    return {row: error.kind for row, error in chunk.errors.items()}


def column(values: list[Any], path: Path) -> tuple[pa.Field, list[Any]]:
    """A field named x over rows with these values."""
    lines = [json.dumps({"text": "a", "x": value}) for value in values]
    chunk = read(path, "\n".join(lines).encode(), "x")
    return chunk.table.schema.field("x"), chunk.table["x"].to_pylist()


@pytest.mark.parametrize(
    "content",
    [
        b'{"text": "a"}\n{"text": "b"}\n',
        b'{"text": "a"}\n{"text": "b"}',
        b'\n\n  \t\n{"text": "a"}\n\r\n\n{"text": "b"}\n \n\n',
        b'{"text": "a"}\r\n{"text": "b"}\r\n',
        b'\xef\xbb\xbf{"text": "a"}\n{"text": "b"}\n',
        b'\xef\xbb\xbf\r\n{"text": "a"}\r\n{"text": "b"}',
        b' \t{"text":\t"a"} \n{ "text" : "b" }\t\n',
    ],
    ids=["plain", "no_end", "blank_lines", "crlf", "bom", "bom_crlf", "spaces"],
)
def test_lines_are_rows_and_blank_lines_are_not(path: Path, content: bytes) -> None:
    chunk = read(path, content)
    assert chunk.table["text"].to_pylist() == ["a", "b"] and not chunk.errors
    reader = open_input(str(path))
    (rest,) = reader.read(Position(0, int(chunk.marks[1])), ["text"], ["text"])
    assert rest.table["text"].to_pylist() == ["b"]
    assert list(reader.read(Position(0, int(chunk.marks[2])), ["text"], ["text"])) == []


@pytest.mark.parametrize(
    ("line", "kind"),
    [
        (b"not json", "invalid_json"),
        (b'{"text": "x"', "invalid_json"),
        (b'{"text": "x"}}', "invalid_json"),
        (b'["text", "x"]', "invalid_json"),
        (b'"text"', "invalid_json"),
        (b"null", "invalid_json"),
        (b"1" * 5_000, "invalid_json"),
        (b"[" * 100_000, "invalid_json"),
        (b'{"text": "\xff"}', "invalid_utf8"),
        (b'{"text": "\\ud800"}', "lone_surrogate"),
        (b'{"text": "a \\udfff b"}', "lone_surrogate"),
        (b'{"text": 3}', "not_text"),
        (b'{"text": ["x"]}', "not_text"),
        (b'{"text": true}', "not_text"),
        (b'{"text": {"a": "b"}}', "not_text"),
    ],
)
def test_a_line_without_text_is_an_error_in_its_row_and_is_kept(path: Path, line: bytes, kind: str) -> None:
    chunk = read(path, b'{"text": "a"}\n' + line + b'\n{"text": "b"}\n')
    assert chunk.table["text"].to_pylist() == ["a", None, "b"]
    assert kinds(chunk) == {1: kind}
    first, rescued, last = chunk.table[RESCUED].to_pylist()
    assert (first, last) == (None, None)
    if kind in ("lone_surrogate", "not_text"):
        assert strict_json(rescued) == json.loads(line)
    else:
        assert rescued == line.decode("utf-8", "backslashreplace")


@pytest.mark.parametrize("line", [b"{}", b'{"text": null}', b'{"other": "x"}'])
def test_a_missing_text_is_null(path: Path, line: bytes) -> None:
    chunk = read(path, b'{"text": "a"}\n' + line, "text")
    assert chunk.table["text"].to_pylist() == ["a", None] and not chunk.errors


def test_surrogates_in_pairs_are_one_character(path: Path) -> None:
    assert read(path, b'{"text": "\\ud83d\\ude42"}').table["text"].to_pylist() == ["🙂"]


def test_a_name_that_stands_twice_has_its_last_value(path: Path) -> None:
    assert read(path, b'{"text": "a", "text": "b"}').table["text"].to_pylist() == ["b"]


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        (["2020-01-01", "2020-01-02T03:04:05Z"], pa.large_string()),
        (["1", "true", ""], pa.large_string()),
        ([True, False, None], pa.bool_()),
        ([1, -(1 << 63), (1 << 63) - 1, None], pa.int64()),
        ([1.5, 2, None, 1e300], pa.float64()),
        ([0.1, 1 << 53], pa.float64()),
    ],
)
def test_values_of_one_type_have_that_type(path: Path, values: list[Any], kind: pa.DataType) -> None:
    field, found = column(values, path)
    assert field.type == kind and not field.metadata
    assert found == values
    assert RESCUED not in open_input(str(path)).schema().names


@pytest.mark.parametrize(
    "values",
    [
        [[1, 2], {"a": [None, "é"]}],
        [1, True],
        [1 << 63, 1],
        [0.5, (1 << 53) + 1],
        [None, None],
        [{"deep": [[[1.0]]]}, 3],
        ["a", [1]][1:],
    ],
)
def test_other_values_become_json_text(path: Path, values: list[Any]) -> None:
    field, found = column(values, path)
    assert field.type == pa.large_string() and field.metadata == {b"packhorse.encoding": b"json"}
    assert [None if text is None else strict_json(text) for text in found] == values


@pytest.mark.parametrize("number", [b"1e400", b"-1e400", b"NaN", b"Infinity"])
def test_json_text_is_json_whatever_the_number(path: Path, number: bytes) -> None:
    chunk = read(path, b'{"text": "a", "x": [' + number + b"]}", "x")
    assert chunk.errors or strict_json(chunk.table["x"][0].as_py()) is not None


def test_a_string_among_numbers_makes_the_column_text_and_the_numbers_are_rescued(path: Path) -> None:
    chunk = read(path, b'{"text": "a", "x": 1}\n{"text": "b", "x": "two"}\n{"text": "c", "x": null}\n')
    assert chunk.table["x"].to_pylist() == [None, "two", None]
    assert chunk.table[RESCUED].to_pylist() == ['{"x": 1}', None, None]


def test_fields_the_sample_did_not_see_are_rescued(path: Path) -> None:
    padding = b'{"text": "%s"}\n' % (b"x" * 17 * MIB)
    path.write_bytes(b'{"text": "a", "n": 1}\n' + padding + b'{"text": "b", "n": 1.5, "late": [1]}\n{"text": "c"}\n')
    reader = open_input(str(path))
    assert reader.schema().names == ["text", "n", RESCUED]
    last = list(reader.read(START, ["n", RESCUED], ["text"]))[-1].table.to_pylist()[-2:]
    assert [(row["text"], row["n"], row[RESCUED] and strict_json(row[RESCUED])) for row in last] == [
        ("b", None, {"n": 1.5, "late": [1]}),
        ("c", None, None),
    ]


@pytest.mark.parametrize("broken_line", [b"", b"not json\n"])
@pytest.mark.parametrize("name", [RESCUED, RAW_LINE])
def test_a_column_named_like_our_own_is_kept_or_refused(path: Path, name: str, broken_line: bytes) -> None:
    """The output of one run is the input of the next."""
    line = json.dumps({"text": "a", name: "mine"}).encode() + b"\n"
    try:
        chunk = read(path, line + broken_line)
    except UsageError:
        return
    kept = chunk.table[name].to_pylist()[0]
    assert type(kept) is str and "mine" in kept


@pytest.mark.parametrize("name", [RESCUED, RAW_LINE])
def test_a_column_named_like_our_own_that_comes_late_is_rescued(path: Path, name: str) -> None:
    padding = b'{"text": "%s"}\n' % (b"x" * 17 * MIB)
    path.write_bytes(padding + json.dumps({"text": "a", name: "mine"}).encode())
    last = list(open_input(str(path)).read(START, [RESCUED], ["text"]))[-1].table[RESCUED].to_pylist()[-1]
    assert strict_json(last) == {name: "mine"}


def test_a_field_whose_name_is_half_a_surrogate_pair_does_not_end_the_run(path: Path) -> None:
    assert read(path, b'{"text": "a", "\\ud800": 1}\n').table["text"].to_pylist() == ["a"]


def test_a_byte_order_mark_in_the_middle_is_no_end_of_the_row(path: Path) -> None:
    """Files that were put together with cat."""
    chunk = read(path, b'{"text": "a"}\n\xef\xbb\xbf{"text": "b"}\n', "text")
    assert chunk.table["text"].to_pylist() == ["a", "b"] or kinds(chunk) == {1: "invalid_json"}


def test_what_a_row_weighs_does_not_depend_on_where_reading_began(path: Path) -> None:
    """Blank lines stand at the seams of blocks."""
    path.write_bytes((b'{"text": "' + b"a" * 1_000 + b'"}\n' + b"\n" * 50) * 9_000)
    reader = open_input(str(path))
    whole = [
        (int(m), int(w)) for c in reader.read(START, [], ["text"]) for m, w in zip(c.marks, c.row_bytes, strict=False)
    ]
    start = Position(0, whole[100][0])
    rest = [
        (int(m), int(w)) for c in reader.read(start, [], ["text"]) for m, w in zip(c.marks, c.row_bytes, strict=False)
    ]
    assert rest == whole[100:]


def test_the_line_itself_can_be_asked_for(path: Path) -> None:
    lines = [b'{"text": "a", "x": 1.0}', "{'é'".encode(), b'{"text":"b"}']
    assert read(path, b"\n".join(lines), RAW_LINE).table[RAW_LINE].to_pylist() == lines


@pytest.mark.parametrize("content", [b"", b"\n\n", b"\xef\xbb\xbf"])
def test_a_file_without_lines_has_no_rows(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    reader = open_input(str(path))
    assert list(reader.read(START, [], [])) == []
    assert 0 <= reader.progress(START) <= 1
