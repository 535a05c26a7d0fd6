"""What Parquet alone can hold: row groups, other kinds of text, schemas, damage."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from packhorse.data import Chunk, Position
from packhorse.errors import InputError, PackhorseError
from packhorse.readers import open_input
from tests.null.reference import predicted, predictions
from tests.null.runs import rows_of, run

START = Position(0, 0)
WORDS: list[str | None] = ["good", None, "", "good", "naïve 漢字 🙂"]
# The second of four texts is a byte that is no UTF-8; Parquet files carry such bytes unnoticed.
BROKEN = pa.StringArray.from_buffers(
    4, pa.array([0, 4, 5, 8, 8], pa.int32()).buffers()[1], pa.py_buffer(b"good\xffbad")
)
KINDS_OF_TEXT: dict[str, Any] = {
    "string": lambda a: a,
    "large_string": lambda a: a.cast(pa.large_string()),
    "string_view": lambda a: a.cast(pa.string_view()),
    "dictionary": lambda a: a.dictionary_encode(),
}
every_kind = pytest.mark.parametrize("kind", KINDS_OF_TEXT)


def save(path: Path, text: Any, **columns: Any) -> Path:
    pq.write_table(pa.table({"text": text, **columns}), path)
    return path


def chunks(path: Path, columns: tuple[str, ...] = ("text",)) -> list[Chunk]:
    return list(open_input(str(path)).read(START, columns, ["text"]))


@every_kind
def test_every_kind_of_text_comes_out_as_large_string(kind: str, tmp_path: Path) -> None:
    path = save(tmp_path / "a.parquet", KINDS_OF_TEXT[kind](pa.array(WORDS)))
    (chunk,) = chunks(path)
    assert chunk.table["text"].type == pa.large_string()
    assert chunk.table["text"].to_pylist() == WORDS


@every_kind
def test_an_output_has_the_same_columns_with_rows_and_without(kind: str, tmp_path: Path, null_model: Path) -> None:
    text = KINDS_OF_TEXT[kind](pa.array(WORDS))
    run(null_model, save(tmp_path / "some.parquet", text, n=range(5)), tmp_path / "some")
    run(null_model, save(tmp_path / "none.parquet", text[:0], n=pa.array([], pa.int64())), tmp_path / "none")
    some, none = (pq.read_table(tmp_path / name) for name in ("some", "none"))
    assert some.schema == none.schema and len(none) == 0


@every_kind
def test_bytes_that_are_no_utf8_are_an_error_in_their_row(kind: str, tmp_path: Path) -> None:
    text = BROKEN
    if kind == "dictionary":  # pyarrow reads no row of such a dictionary
        text = pa.DictionaryArray.from_arrays(pa.array([0, 1, 2, 3]), BROKEN)
        with pytest.raises(InputError, match=r"a\.parquet"):
            chunks(save(tmp_path / "a.parquet", text))
        return
    if kind != "string":
        text = KINDS_OF_TEXT[kind](BROKEN)
    (chunk,) = chunks(save(tmp_path / "a.parquet", text))
    assert {row: error.kind for row, error in chunk.errors.items()} == {1: "invalid_utf8"}
    assert "0xff" in chunk.errors[1].message


@pytest.mark.parametrize("name", ["out", "out.parquet", "out.jsonl"])
def test_a_run_survives_bytes_that_are_no_utf8(name: str, tmp_path: Path, null_model: Path) -> None:
    path = save(tmp_path / "a.parquet", BROKEN, other=BROKEN)
    run(null_model, path, tmp_path / name, text_column="text", keep=("other",))
    if name == "out.jsonl":
        found = rows_of(tmp_path / name)
    else:  # Parquet carries the bytes on, so Python cannot show them
        found = pq.read_table(tmp_path / name).drop_columns("other").to_pylist()
    good, bad, empty = (predictions([text])[0] for text in ("good", "bad", ""))
    assert predicted(found) == [good, (None, None, "invalid_utf8"), bad, empty]


def test_small_and_large_row_groups_are_read_in_order(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    schema = pa.schema([("text", pa.string()), ("n", pa.int64())])
    sizes = [1, 0, 3, 20_000, 2, 0]
    with pq.ParquetWriter(path, schema) as writer:
        for i, size in enumerate(sizes):
            first = sum(sizes[:i])
            writer.write_table(pa.table({"text": ["a"] * size, "n": range(first, first + size)}, schema))
    reader = open_input(str(path))
    assert [n for c in reader.read(START, ["n"], ["text"]) for n in c.table["n"].to_pylist()] == list(range(20_006))
    for mark in (0, 1, 3, 4, 5, 20_003, 20_004, 20_005):
        chunk = next(iter(reader.read(Position(0, mark), ["n"], ["text"])))
        assert (chunk.table["n"][0].as_py(), int(chunk.marks[0])) == (mark, mark)
    assert list(reader.read(Position(0, 20_006), ["n"], ["text"])) == []


def test_a_dictionary_column_beside_the_text_stays_one(tmp_path: Path) -> None:
    colours = pa.array(["red", "blue", None, "red", "green"])
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": WORDS, "c": colours.dictionary_encode()}), path, row_group_size=2)
    table = pa.concat_tables([chunk.table for chunk in chunks(path, ("c", "text"))], promote_options="permissive")
    assert pa.types.is_dictionary(table["c"].type)
    assert table["c"].to_pylist() == colours.to_pylist()


def test_a_map_a_list_and_a_time_are_passed_through(tmp_path: Path) -> None:
    nested = pa.table({
        "text": ["good"],
        "map": pa.array([[("k", 1)]], pa.map_(pa.string(), pa.int8())),
        "list": pa.array([[["a"], None]], pa.list_(pa.list_(pa.string()))),
        "time": pa.array([1_700_000_000_123_456_789], pa.timestamp("ns", "UTC")),
        "bytes": pa.array([b"\xff\x00"], pa.binary()),
    })  # fmt: skip
    pq.write_table(nested, tmp_path / "a.parquet")
    (chunk,) = chunks(tmp_path / "a.parquet", tuple(nested.column_names))
    for name in nested.column_names[1:]:
        assert chunk.table[name].equals(nested[name])


def other_columns(**changes: Any) -> pa.Table:
    schema = pa.schema([("text", pa.string()), ("n", pa.int64())])
    table = pa.table({"text": ["a"], "n": [1]}, schema)
    return changes["to"](table)


DIFFERENCES = {
    "type": (lambda t: t.cast(pa.schema([("text", pa.string()), ("n", pa.int32())])), ["n: int64", "int32"]),
    "missing": (lambda t: t.drop_columns("n"), ["n: int64", "missing"]),
    "one_more": (lambda t: t.append_column("extra", pa.array([True])), ["extra: missing", "bool"]),
    "order": (lambda t: t.select(["n", "text"]), ["order"]),
    "nulls": (
        lambda t: t.cast(pa.schema([pa.field("text", pa.string(), nullable=False), ("n", pa.int64())])),
        ["text", "null"],
    ),
}


@pytest.mark.parametrize("name", DIFFERENCES)
def test_files_of_different_columns_are_refused_with_the_difference(name: str, tmp_path: Path) -> None:
    change, words = DIFFERENCES[name]
    pq.write_table(other_columns(to=lambda t: t), tmp_path / "a.parquet")
    pq.write_table(other_columns(to=change), tmp_path / "b.parquet")
    with pytest.raises(InputError) as caught:
        open_input(str(tmp_path))
    assert all(word in str(caught.value) for word in ["a.parquet", "b.parquet", *words])


@pytest.mark.parametrize("keep", [0, 3, 11, 300, -1])
def test_a_truncated_file_is_named(keep: int, tmp_path: Path) -> None:
    path = save(tmp_path / "a.parquet", ["good"] * 500, n=range(500))
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(InputError, match=r"a\.parquet"):
        open_input(str(path))


def test_a_flipped_bit_in_a_page_is_found_and_the_file_named(tmp_path: Path, null_model: Path) -> None:
    path = tmp_path / "a.parquet"
    text = [f"row {i}" for i in range(2_000)]
    pq.write_table(pa.table({"text": text}), path, write_page_checksum=True, use_dictionary=False, compression="none")
    content = bytearray(path.read_bytes())
    at = content.index(b"row 1777")
    content[at] ^= 1
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"a\.parquet"):
        run(null_model, path, tmp_path / "out")


def test_a_file_that_goes_away_between_two_steps_is_named(tmp_path: Path) -> None:
    path = save(tmp_path / "a.parquet", ["good"])
    reader = open_input(str(path))
    path.unlink()
    with pytest.raises(PackhorseError, match=r"a\.parquet"):
        list(reader.read(START, ["text"], ["text"]))
