"""Plain text: as many rows as lines."""

from __future__ import annotations

from pathlib import Path

import pytest

from packhorse.data import Position
from packhorse.readers import open_input


@pytest.mark.parametrize(
    ("content", "texts"),
    [
        (b"a\nb\n", ["a", "b"]),
        (b"a\nb", ["a", "b"]),
        (b"\n\na\n\n", ["", "", "a", ""]),
        (b"a\r\nb\r\n\r\n", ["a", "b", ""]),
        (b"\xef\xbb\xbfa\n", ["a"]),
        (b" a \t\n\r\n", [" a \t", ""]),
        (b'"x, y\\n\n', ['"x, y\\n']),
        ("a\u2028b\x0bc\x85d\re\n".encode(), ["a\u2028b\x0bc\x85d\re"]),
        (b"", []),
    ],
)
def test_a_line_is_a_row(tmp_path: Path, content: bytes, texts: list[str]) -> None:
    (tmp_path / "rows.txt").write_bytes(content)
    reader = open_input(str(tmp_path / "rows.txt"))
    found = [
        text for chunk in reader.read(Position(0, 0), ["text"], ["text"]) for text in chunk.table["text"].to_pylist()
    ]
    assert found == texts
    assert len(found) == content.count(b"\n") + (not content.endswith(b"\n") and bool(content))


def test_bytes_that_are_no_text_are_an_error_in_their_row(tmp_path: Path) -> None:
    (tmp_path / "rows.txt").write_bytes(b"good\ncaf\xe9\ngood\n")
    (chunk,) = open_input(str(tmp_path / "rows.txt")).read(Position(0, 0), ["text"], ["text"])
    assert chunk.table["text"].to_pylist() == ["good", "caf\ufffd", "good"]
    assert {i: error.kind for i, error in chunk.errors.items()} == {1: "invalid_utf8"}


def test_text_beside_data_in_a_folder_is_a_note(tmp_path: Path) -> None:
    (tmp_path / "README.txt").write_bytes(b"about\n")
    assert open_input(str(tmp_path)).files == [str(tmp_path / "README.txt")]
    (tmp_path / "rows.jsonl").write_bytes(b'{"text": "a"}\n')
    assert open_input(str(tmp_path)).files == [str(tmp_path / "rows.jsonl")]
