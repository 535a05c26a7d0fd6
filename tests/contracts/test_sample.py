"""A sample of an input is spread over it, the same every time, and tells how many rows there are."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from packhorse.readers import open_input, parquet
from packhorse.readers.sample import PLACES, take_sample
from packhorse.readers.table import TableReader
from packhorse.stages import Reader
from tests.contracts import test_readers

ROWS = 5_000


def texts(count: int) -> list[str]:
    return [f"{i} " + "word " * (i % 7) for i in range(count)]


def table(count: int) -> pa.Table:
    return pa.table({"text": pa.array(texts(count), pa.large_string()), "n": range(count)})


def numbers(reader: Reader, max_rows: int = 1_024, limit: int | None = None) -> list[int]:
    sample = take_sample(reader, ["text"], limit, max_rows)
    assert sample.pairs is None
    return [int((text or "-1").split()[0]) for text in sample.texts[0]]


Save = Callable[[pa.Table, Path], object]
SAVES: dict[str, Save] = {
    "parquet": test_readers.parquet(None),
    "parquet, small groups": test_readers.parquet(300),
    "parquet, files": test_readers.parquet_files,
    "lines": test_readers.lines,
    "memory": lambda rows, folder: rows,
}


@pytest.fixture(params=SAVES)
def save(request: pytest.FixtureRequest) -> Save:
    return SAVES[request.param]


def opened(save: Save, folder: Path, count: int) -> Reader:
    saved = save(table(count), folder)
    return open_input(saved) if isinstance(saved, str) else TableReader(saved)


def test_it_is_spread_over_the_input(save: Save, tmp_path: Path) -> None:
    found = numbers(opened(save, tmp_path, ROWS))
    assert found == sorted(set(found)), "rows come once, in their order"
    assert 900 <= len(found) <= 1_024
    step = ROWS // PLACES
    assert {n // step for n in found} >= set(range(PLACES))


def test_it_is_the_same_every_time(save: Save, tmp_path: Path) -> None:
    reader = opened(save, tmp_path, ROWS)
    assert numbers(reader) == numbers(reader)


@pytest.mark.parametrize("count", [1, 2, 15, 17, 700])
def test_a_small_input_is_taken_whole(save: Save, tmp_path: Path, count: int) -> None:
    reader = opened(save, tmp_path, count)
    assert numbers(reader) == list(range(count))
    assert take_sample(reader, ["text"], None).is_whole
    assert count == 1 or not take_sample(reader, ["text"], None, max_rows=count // 2).is_whole


def test_an_empty_input_gives_no_rows(tmp_path: Path) -> None:
    pq.write_table(table(0), tmp_path / "rows.parquet")
    readers = [open_input(str(tmp_path / "rows.parquet")), TableReader(table(0))]
    for reader in readers:
        sample = take_sample(reader, ["text"], None)
        assert (sample.texts, sample.total_rows) == ([[]], 0.0)


@pytest.mark.parametrize("limit", [0, 5, 3_000])
def test_with_a_limit_it_is_of_the_first_rows(save: Save, tmp_path: Path, limit: int) -> None:
    reader = opened(save, tmp_path, ROWS)
    assert numbers(reader, limit=limit) == list(range(min(limit, 1_024)))
    assert take_sample(reader, ["text"], limit).total_rows == limit


def test_it_tells_how_many_rows_there_are(save: Save, tmp_path: Path) -> None:
    total = take_sample(opened(save, tmp_path, ROWS), ["text"], None).total_rows
    assert total == pytest.approx(ROWS, rel=0.05)


def test_of_a_large_row_group_its_first_rows_stand_for_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet, "LARGE_GROUP_BYTES", 1_000)
    pq.write_table(table(ROWS), tmp_path / "rows.parquet", row_group_size=ROWS // 4)
    found = numbers(open_input(str(tmp_path)))
    assert {n // (ROWS // 4) for n in found} == {0, 1, 2, 3}
    assert len(found) >= 1_000


def test_a_row_that_is_no_text_is_none_and_pairs_are_a_second_list(tmp_path: Path) -> None:
    lines = [{"a": "x", "b": "y"}, {"a": None, "b": "z"}, {"a": "u", "b": 5}]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    sample = take_sample(open_input(str(tmp_path / "rows.jsonl")), ["a", "b"], None)
    assert sample.texts[0] == ["x", None, None]  # a row in error has no text at all
    assert sample.pairs is not None and sample.pairs[:2] == ["y", "z"]
