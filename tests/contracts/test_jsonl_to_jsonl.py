"""JSON lines in, JSON lines out: each line as it was, the predictions at its end."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from packhorse.data import RESCUED
from tests.null.reference import predicted, predictions
from tests.null.runs import rows_of, run, strict_json, strict_lines

LINES = [
    '{"text": "good", "x": 1.0}',
    '{"x":1e400,"text":"bad","nested":{"a":[1.10,null,{"é":"\\u00e9"}]}}',
    '{"text" : "naïve 漢字 🙂 \u2028" ,\t"n": 123456789012345678901234567890 }',
    '{"text": "\\ud83d\\ude42 \\/ \\u0041", "t": "2020-01-01", "f": 0.10000000000000000000001}',
    '{"text": null}',
    '{"text": "\\ud800"}',
    '{"n": 1}',
    "{}",
]
TEXTS = ["good", "bad", "naïve 漢字 🙂 \u2028", "🙂 / A", None, None, None, None]


def score(model: Path, content: bytes, folder: Path, **settings: object) -> Path:
    (folder / "in.jsonl").write_bytes(content)
    run(model, folder / "in.jsonl", folder / "out.jsonl", text_column="text", **settings)
    return folder / "out.jsonl"


@pytest.mark.parametrize("end", ["\n", "\r\n", "\n\n"])
def test_lines_go_through_as_they_are(null_model: Path, tmp_path: Path, end: str) -> None:
    out = score(null_model, end.join(LINES).encode(), tmp_path)
    found = out.read_bytes().decode().split("\n")
    for line, before in zip(found, LINES, strict=False):
        assert line.startswith(before.rstrip("}").rstrip())
    expected = predictions(TEXTS)
    expected[5] = expected[5]._replace(error="lone_surrogate")
    assert predicted(strict_lines(out)) == expected
    assert len(found) == len(LINES) + 1


@pytest.mark.parametrize(
    "line",
    [b"not json", b"[1, 2]", b'{"text": "x"', b'"a\xff"', b'{"text": "\xff"}', b'{"text": "\xed\xa0\x80"}'],
    ids=["words", "list", "cut", "bytes", "object", "surrogate"],
)
def test_a_line_that_is_no_object_stands_in_the_output_as_text(null_model: Path, tmp_path: Path, line: bytes) -> None:
    out = score(null_model, b'{"text": "good"}\n' + line + b'\n{"text": "bad"}\n', tmp_path)
    first, broken, last = strict_lines(out)
    assert predicted([first, last]) == predictions(["good", "bad"])
    assert broken[RESCUED] == line.decode("utf-8", "backslashreplace")
    assert broken["label"] is None and broken["error"]["kind"] in ("invalid_json", "invalid_utf8")


def test_a_byte_order_mark_in_the_middle_leaves_an_output_that_is_json(null_model: Path, tmp_path: Path) -> None:
    """Files that were put together with cat."""
    out = score(null_model, b'{"text": "good"}\n\xef\xbb\xbf{"text": "bad"}\n', tmp_path)
    assert len(strict_lines(out)) == 2


@pytest.mark.parametrize("word", [b"NaN", b"Infinity", b"-Infinity"])
def test_words_that_are_no_json_leave_an_output_that_is_json(null_model: Path, tmp_path: Path, word: bytes) -> None:
    out = score(null_model, b'{"text": "good"}\n{"text": "bad", "x": ' + word + b"}\n", tmp_path)
    assert len(strict_lines(out)) == 2


def test_a_field_named_like_a_prediction_that_comes_late_does_not_stand_twice(null_model: Path, tmp_path: Path) -> None:
    """The first 16 MiB are looked at for such a name before the run; this one comes after them."""
    padding = b'{"text": "' + b"a " * (17 << 19) + b'"}\n'
    out = score(null_model, b'{"text": "good"}\n' + padding + b'{"text": "bad", "label": "mine"}\n', tmp_path)
    last = out.read_bytes().decode().splitlines()[-1]
    assert strict_json(last)["error"] is not None or strict_json(last)["label"] == predictions(["bad"])[0].label


TEXT = st.text(st.characters() | st.sampled_from("\u2028\x00\ufeff\x85"), max_size=6)
NUMBER = st.integers(-(2**70), 2**70) | st.floats(allow_nan=False, allow_infinity=False)
LEAF = st.none() | st.booleans() | NUMBER | TEXT
VALUE = st.recursive(LEAF, lambda v: st.lists(v, max_size=3) | st.dictionaries(TEXT, v, max_size=3), max_leaves=5)
OBJECT = st.dictionaries(st.sampled_from(["text", "a", "é", ""]) | TEXT, VALUE, max_size=4)
LINE = (
    OBJECT.map(lambda o: json.dumps(o).encode())
    | OBJECT.map(lambda o: json.dumps(o, ensure_ascii=False).encode("utf-8", "surrogatepass"))
    | st.binary(max_size=8).map(lambda b: b.replace(b"\n", b""))
)


@settings(max_examples=20)
@given(st.lists(LINE, max_size=24))
def test_whatever_stands_in_a_line_it_is_one_row_and_the_output_is_json(
    null_model: Path, tmp_path_factory: pytest.TempPathFactory, lines: list[bytes]
) -> None:
    folder = tmp_path_factory.mktemp("lines")
    lines = [b'{"text": "first"}', *lines]
    out = score(null_model, b"\n".join(lines), folder)
    run(null_model, folder / "in.jsonl", folder / "columns", text_column="text", shard_rows=3)
    assert len(strict_lines(out)) == sum(not line.isspace() for line in lines if line)
    assert predicted(strict_lines(out)) == predicted(rows_of(folder / "columns"))


def test_chosen_columns_are_written_anew(null_model: Path, tmp_path: Path) -> None:
    content = b'{"text": "good", "x": 1.0, "y": [1, {"a": null}], "z": 1}\n{"text": "bad", "x": 1e400, "y": null}\n'
    out = strict_lines(score(null_model, content, tmp_path, keep=("y", "x")))
    assert [list(row) for row in out] == [["y", "x", "label", "score", "error"]] * 2
    assert [(row["y"], row["x"]) for row in out] == [([1, {"a": None}], 1.0), (None, None)]


def test_a_prefix_lets_a_field_and_a_prediction_have_one_name(null_model: Path, tmp_path: Path) -> None:
    (row,) = strict_lines(score(null_model, b'{"text": "good", "label": "mine"}', tmp_path, output_prefix="pred_"))
    assert list(row) == ["text", "label", "pred_label", "pred_score", "pred_error"]
    assert (row["label"], row["pred_label"]) == ("mine", predictions(["good"])[0].label)


def test_lines_keep_their_order_over_many_shards(null_model: Path, tmp_path: Path) -> None:
    content = "".join(json.dumps({"id": i, "text": f"row {i}"}) + "\n" for i in range(500)).encode()
    found = strict_lines(score(null_model, content, tmp_path, shard_rows=37))
    assert [row["id"] for row in found] == list(range(500))
    assert predicted(found) == predictions([f"row {i}" for i in range(500)])
