"""Which files a path, a folder or a glob means, and in which order."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from packhorse.data import Position
from packhorse.errors import UsageError
from packhorse.readers import open_input
from packhorse.readers.table import TableReader


def save(root: Path, *names: str) -> Path:
    """A file of one row each; the row's text is the file's name."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".jsonl":
            path.write_text(f'{{"text": "{name}"}}\n')
        else:
            pq.write_table(pa.table({"text": [name]}), path)
    return root


def texts(address: Path) -> list[str]:
    chunks = open_input(str(address)).read(Position(0, 0), [], ["text"])
    return [text for chunk in chunks for text in chunk.table["text"].to_pylist()]


def test_a_file_is_itself(tmp_path: Path) -> None:
    assert texts(save(tmp_path, "b.parquet", "a.parquet") / "b.parquet") == ["b.parquet"]


def test_the_files_of_a_folder_come_in_the_order_of_their_path(tmp_path: Path) -> None:
    names = ["b.parquet", "a/z.parquet", "a/b/c.pq", "c10.parquet", "c2.parquet", "A.PARQUET"]
    assert texts(save(tmp_path, *names)) == [
        "A.PARQUET",
        "a/b/c.pq",
        "a/z.parquet",
        "b.parquet",
        "c10.parquet",
        "c2.parquet",
    ]


def test_bookkeeping_in_a_folder_is_not_data(tmp_path: Path) -> None:
    save(tmp_path, "rows.jsonl", "_rows.jsonl", ".rows.jsonl", "_state/rows.jsonl", ".git/rows.jsonl", "a/_b/c.jsonl")
    (tmp_path / "notes.txt").write_text("no rows")
    assert texts(tmp_path) == ["rows.jsonl"]


def test_a_folder_that_is_itself_named_like_bookkeeping_can_be_read(tmp_path: Path) -> None:
    save(tmp_path / "_in", "rows.jsonl")
    assert texts(tmp_path / "_in") == ["rows.jsonl"]


def test_a_glob_takes_what_it_matches_in_the_order_of_the_path(tmp_path: Path) -> None:
    save(tmp_path, "b.jsonl", "a.jsonl", "c.parquet", "sub/d.jsonl")
    assert texts(tmp_path / "*.jsonl") == ["a.jsonl", "b.jsonl"]
    assert texts(tmp_path / "**" / "*.jsonl") == ["a.jsonl", "b.jsonl", "sub/d.jsonl"]


def test_a_file_whose_name_looks_like_a_glob_is_itself(tmp_path: Path) -> None:
    assert texts(save(tmp_path, "[ab].jsonl", "a.jsonl") / "[ab].jsonl") == ["[ab].jsonl"]


def test_a_link_is_read_by_its_own_name_whatever_it_points_at(tmp_path: Path) -> None:
    """As in the hub's cache, where a file is a link to a blob named by its hash."""
    blobs = save(tmp_path / "blobs", "1.parquet", "2.parquet")
    (blobs / "1.parquet").rename(blobs / "ffff")
    (blobs / "2.parquet").rename(blobs / "0000")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a.parquet").symlink_to(blobs / "ffff")
    (tmp_path / "data" / "b.parquet").symlink_to(blobs / "0000")
    assert texts(tmp_path / "data") == ["1.parquet", "2.parquet"]
    assert texts(tmp_path / "data" / "b.parquet") == ["2.parquet"]


def test_formats_are_not_mixed(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"different formats \(\.jsonl, \.parquet\)"):
        open_input(str(save(tmp_path, "a.jsonl", "b.parquet")))


def test_an_unknown_format_is_refused_with_the_legal_ones(tmp_path: Path) -> None:
    (tmp_path / "a.xlsx").write_bytes(b"")
    with pytest.raises(UsageError, match=r"\.xlsx.*\.parquet"):
        open_input(str(tmp_path / "a.xlsx"))


@pytest.mark.parametrize("address", ["nothing.parquet", "*.parquet", "."])
def test_where_no_file_is_found_the_address_is_named(tmp_path: Path, address: str) -> None:
    with pytest.raises(UsageError) as caught:
        open_input(str(tmp_path / address))
    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize("rows", [3, ["a text"], None])
def test_what_is_no_table_is_refused_with_the_legal_kinds(rows: object) -> None:
    with pytest.raises(UsageError, match="legal are a path, a pyarrow table"):
        TableReader(rows)
