"""Prompts of columns: templates against Python's own format, and what is refused."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from packhorse.data import RowError
from packhorse.errors import UsageError
from packhorse.prompts import make_prompts
from packhorse.prompts.template import Template
from tests.null.test_chats import chat_folder


@given(st.lists(st.sampled_from(["{a}", "{b}", "{{", "}}", "{{a}}", "text ", "$%", "\n"]), max_size=8))
def test_a_template_gives_what_pythons_format_gives(pieces: list[str]) -> None:
    text = "".join(["{a}", *pieces])
    table = pa.table({"a": ["x", "{b}"], "b": ["y", "a {a} }} b"]})
    template = Template(text)
    template.check(table.schema)
    expected = [text.format(**row) for row in table.to_pylist()]
    assert template.render(table, {}) == (expected, {})
    assert template.columns == [name for name in table.schema.names if f"{{{name}}}" in text.replace("{{a}}", "")]


def test_values_of_all_kinds_stand_in_a_prompt_as_text() -> None:
    columns = {
        "int": pa.array([7], pa.int8()),
        "float": pa.array([0.1], pa.float32()),
        "double": pa.array([1e16], pa.float64()),
        "bool": pa.array([True]),
        "dictionary": pa.array(["red"]).dictionary_encode(),
        "list": pa.array([["a", None, "é"]]),
        "struct": pa.array([{"x": 1, "y": float("nan")}]),
        "json": pa.array(['{"k": [1]}'], pa.large_string()),
        "date": pa.array([datetime.date(2024, 2, 29)]),
        "time": pa.array([datetime.datetime(2024, 2, 29, 7, 5)]),
        "precise": pa.array([1_500_000_000], pa.timestamp("ns", "UTC")),
        "duration": pa.array([datetime.timedelta(seconds=3)]),
    }
    table = pa.table(columns)
    template = Template("|".join(f"{{{name}}}" for name in columns))
    template.check(table.schema)
    expected = '7|0.1|1e+16|true|red|["a", null, "é"]|{"x": 1, "y": null}|{"k": [1]}|2024-02-29'
    expected += "|2024-02-29 07:05:00|1970-01-01 00:00:01.5Z|0:00:03"
    assert template.render(table, {}) == ([expected], {})


def test_a_null_is_an_error_of_its_row_that_names_the_column() -> None:
    table = pa.table({"a": ["x", None, "z", "w"], "b": pa.array([1.5, 2.0, None, 4.0])})
    prompts, errors = Template("{a} {b}").render(table, {3: RowError("invalid_json", "")})
    assert prompts == ["x 1.5", None, None, None]
    assert errors == {
        1: RowError("null_text", "column 'a' is null"),
        2: RowError("null_text", "column 'b' is null"),
    }


def test_bytes_that_are_no_text_in_a_nested_column_cost_their_row_alone() -> None:
    broken = pa.array([b"good", b"\xff", b"end"]).cast(pa.string(), safe=False)
    column = pa.ListArray.from_arrays(pa.array([0, 1, 2, 3], pa.int32()), broken)
    prompts, errors = Template("{a}").render(pa.table({"a": column}), {})
    assert prompts == ['["good"]', None, '["end"]']
    assert {row: error.kind for row, error in errors.items()} == {1: "invalid_utf8"}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{a} {", "the { at character 5 has no partner"),
        ("{a} } b", "the } at character 5 has no partner"),
        ("{a{b}}", "at character 1 has no partner"),
        ("{a} { }", "at character 5 names no column"),
        ("{}", "at character 1 names no column"),
        ("no field {{a}}", "names no column"),
        ("{titel}", "no such column; did you mean 'title'?; the input has a, title, raw"),
        ("x {a.__class__}", "at character 3: a field is a column's name alone"),
        ("{a[0]}", "write {a}"),
        ("{a!r}", "write {a}"),
        ("{a:>10}", "write {a}"),
        ("{raw}", "the column holds bytes"),
    ],
)
def test_a_template_that_cannot_be_meant_is_refused_with_its_place(text: str, words: str) -> None:
    schema = pa.schema({"a": pa.string(), "title": pa.string(), "raw": pa.binary()})
    with pytest.raises(UsageError) as refusal:
        Template(text).check(schema)
    assert words in str(refusal.value) and "--template" in str(refusal.value) and text in str(refusal.value)


def test_a_column_with_a_dot_in_its_name_is_a_column() -> None:
    assert Template("{a.b}").render(pa.table({"a.b": ["x"]}), {}) == (["x"], {})


def test_a_template_is_read_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("Summarize:\n{a}\n", encoding="utf-8")
    table = pa.table({"a": ["x"]})
    source = make_prompts(table.schema, template=f"@{tmp_path / 't.txt'}")
    assert source.texts(table, {}) == (["Summarize:\nx"], {})
    with pytest.raises(UsageError, match="cannot be read"):
        make_prompts(table.schema, template=f"@{tmp_path / 'missing.txt'}")


def test_columns_of_text_are_asked_for_as_text_and_others_by_their_type() -> None:
    schema = pa.schema({"a": pa.string(), "n": pa.int64(), "d": pa.dictionary(pa.int8(), pa.string())})
    source = make_prompts(schema, template="{a} {n} {d} {a}")
    assert source.columns == ["a", "n", "d"] and source.text_columns == ["a", "d"]
    assert source.adds_special_tokens and not source.tells_time


def test_plain_text_is_left_as_it_is() -> None:
    table = pa.table({"t": pa.array(["a", None, "c", ""], pa.large_string())})
    source = make_prompts(table.schema, text_column="t")
    assert source.texts(table, {2: RowError("invalid_utf8", "")}) == (["a", None, None, ""], {})


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({}, "which column has the prompt"),
        ({"text_column": "t", "template": "{t}"}, "--text-column and --template"),
        ({"messages_column": "t", "chat": False}, "--messages-column goes through the chat template"),
        ({"text_column": "t", "system_prompt": "s", "chat": False}, "--system-prompt goes through"),
        ({"messages_column": "tt"}, "no such column; did you mean 't'?"),
        ({"messages_column": "n"}, "the column is int64"),
    ],
)
def test_what_cannot_be_meant_together_is_refused(asked: dict[str, Any], words: str, tmp_path: Path) -> None:
    schema = pa.schema({"t": pa.string(), "n": pa.int64()})
    with pytest.raises(UsageError) as refusal:
        make_prompts(schema, **asked, model_folder=chat_folder(tmp_path))
    assert words in str(refusal.value)
