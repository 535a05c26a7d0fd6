"""Files in an order of their own, in groups: one reader, whose rows can be gone on with anywhere."""

from __future__ import annotations

from pathlib import Path

import pytest

from packhorse.data import Position
from packhorse.readers import open_input
from packhorse.readers.appended import AppendedReader
from packhorse.stages import Reader
from tests.null.test_append import FORMATS, TEXTS, Save, saved

ORDER = "dbca"


def opened(folder: Path, save: Save) -> AppendedReader:
    rows = saved(folder, save, ORDER)
    by_name = {path.name[0]: str(path) for path in rows.iterdir()}
    files = [by_name[name] for name in ORDER]
    reader = open_input(str(rows), groups=[files[:1], files[1:3], files[3:]])
    assert isinstance(reader, AppendedReader) and reader.files == files
    return reader


def texts_from(reader: Reader, start: Position) -> tuple[list[str], list[Position]]:
    """The texts from a position on, and the position before each of them and after the last."""
    texts, positions = [], []
    for chunk in reader.read(start, ["text", "file"], ["text"]):
        texts += chunk.table["text"].to_pylist()
        positions += [chunk.position(row) for row in range(chunk.table.num_rows)]
        end = chunk.position(chunk.table.num_rows)
    return texts, [*positions, end]


@pytest.mark.parametrize("save", FORMATS)
def test_rows_come_in_the_order_of_the_groups_from_any_position_on(tmp_path: Path, save: Save) -> None:
    reader = opened(tmp_path, save)
    texts, positions = texts_from(reader, Position(0, 0))
    assert texts == [text for name in ORDER for text in TEXTS[name]]
    assert [p.file for p in positions[:-1]] == [i for i, name in enumerate(ORDER) for _ in TEXTS[name]]
    for row in range(0, len(texts), 13):
        assert texts_from(reader, positions[row])[0] == texts[row:]
    assert list(reader.read(positions[-1], ["text"], ["text"])) == []


@pytest.mark.parametrize("save", FORMATS)
def test_progress_grows_from_0_to_1(tmp_path: Path, save: Save) -> None:
    reader = opened(tmp_path, save)
    texts, positions = texts_from(reader, Position(0, 0))
    shares = [reader.progress(position) for position in positions]
    assert shares == sorted(shares) and shares[0] <= 0.02 and shares[-1] == pytest.approx(1)
    assert reader.num_rows() in (None, len(texts))


@pytest.mark.parametrize("save", FORMATS)
def test_a_sample_is_of_the_first_files_alone(tmp_path: Path, save: Save) -> None:
    """So that what was decided on it is decided again, whatever came since."""
    reader = opened(tmp_path, save)
    assert {position.file for position in reader.spread(16)} == {0}
    assert reader.first.spread(16) == reader.spread(16)
    assert [f["path"] for f in reader.fingerprint()] == list(reader.files)
