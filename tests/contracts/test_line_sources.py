"""Where lines come from: compressed files, standard input, and what is told about them."""

from __future__ import annotations

import gzip
import io
import json
import os
import random
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from zlib import crc32

import numpy as np
import pytest

from packhorse.data import Position
from packhorse.errors import ChangedError, InputError, UsageError
from packhorse.readers import jsonl, lines, open_input, sources
from packhorse.readers.options import ReaderOptions
from packhorse.readers.sample import take_sample
from packhorse.stages import Reader
from tests.contracts.test_readers import Piped, compressed

START = Position(0, 0)
CODECS = ["gz", "zst", "bz2"]
MIB = 1 << 20


def row_lines(count: int, width: int = 30) -> bytes:
    draw = random.Random(0)
    return b"".join(b'{"text": "%d %s"}\n' % (i, draw.randbytes(width).hex().encode()) for i in range(count))


def texts(reader: Reader, start: Position = START) -> list[str]:
    return [text for chunk in reader.read(start, ["text"], ["text"]) for text in chunk.table["text"].to_pylist()]


def save(folder: Path, name: str, content: bytes) -> str:
    (folder / name).write_bytes(content)
    return str(folder / name)


@pytest.fixture
def pipe(monkeypatch: pytest.MonkeyPatch) -> Callable[[bytes], None]:
    return lambda content: monkeypatch.setattr(sys, "stdin", Piped(content))


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks, heads and looks small enough that little files have many."""
    for module, name, size in (
        (lines, "BLOCK_BYTES", 512), (lines, "FIRST_BLOCK_BYTES", 64), (jsonl, "SAMPLE_BYTES", 1_000),
        (lines, "SKIPPED_BYTES", 100), (sources, "HEAD_BYTES", 8_192), (sources, "LOOK_BYTES", 2_000),
    ):  # fmt: skip
        monkeypatch.setattr(module, name, size)
    monkeypatch.setattr(sources.StandardInput, "head_bytes", 8_192)


@pytest.mark.parametrize("codec", CODECS)
def test_files_that_were_put_together_with_cat_are_one_stream(tmp_path: Path, codec: str) -> None:
    content = row_lines(40)
    pieces = [content[:100], b"", content[100:101], content[101:]]
    address = save(tmp_path, f"rows.jsonl.{codec}", b"".join(compressed(piece, codec) for piece in pieces))
    assert texts(open_input(address)) == [json.loads(line)["text"] for line in content.splitlines()]


@pytest.mark.parametrize("codec", CODECS)
def test_a_check_is_the_crc_of_what_lies_before(tmp_path: Path, small: None, codec: str) -> None:
    content = b"\xef\xbb\xbf" + row_lines(60).replace(b"\n", b"\n\n", 20)
    (tmp_path / "plain.jsonl").write_bytes(content)
    reader = open_input(save(tmp_path, f"rows.jsonl.{codec}", compressed(content, codec)))
    (plain,) = (open_input(str(tmp_path / "plain.jsonl")),)
    marks = np.concatenate([chunk.marks[:-1] for chunk in plain.read(START, ["text"], ["text"])])
    found = [c.position(i) for c in reader.read(START, ["text"], ["text"]) for i in range(len(c.table))]
    assert [p.mark for p in found] == marks.tolist()
    assert [p.check for p in found] == [crc32(content[: p.mark]) for p in found]
    assert all(chunk.checks is None for chunk in plain.read(START, ["text"], ["text"]))


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("damage", ["cut", "flipped", "not_compressed", "empty"])
def test_a_damaged_file_is_named(tmp_path: Path, codec: str, damage: str) -> None:
    whole = compressed(row_lines(4_000, 300), codec)
    middle = len(whole) // 2
    flipped = whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :]
    if (codec, damage) == ("zst", "flipped"):
        pytest.skip("without the checksum that the zstd command adds, a frame cannot tell")
    content = {"cut": whole[:-200], "flipped": flipped, "not_compressed": row_lines(3), "empty": b""}[damage]
    address = save(tmp_path, f"rows.txt.{codec}", content)
    if damage == "empty":
        assert texts(open_input(address)) == []
        return
    with pytest.raises(InputError, match=rf"rows\.txt\.{codec}"):
        texts(open_input(address))


@pytest.mark.parametrize("codec", CODECS)
def test_what_follows_a_member_and_is_none_is_named(tmp_path: Path, codec: str) -> None:
    """pbzip2 writes a member every 900 kB: what lies behind a damaged header are rows."""
    member = compressed(b"a\nb\n", codec)
    address = save(tmp_path, f"rows.txt.{codec}", member + bytes([member[0] ^ 1]) + member[1:])
    with pytest.raises(InputError, match=rf"rows\.txt\.{codec}"):
        texts(open_input(address))


def test_rows_before_the_damage_are_read(tmp_path: Path) -> None:
    whole = gzip.compress(row_lines(30_000, 200))
    reader = open_input(save(tmp_path, "rows.txt.gz", whole[:-2_000]))
    found = 0
    with pytest.raises(InputError):
        for chunk in reader.read(START, ["text"], ["text"]):
            found += len(chunk.table)
    assert found > 10_000


@pytest.mark.parametrize("kind", [*CODECS, "stdin"])
def test_a_resumed_read_refuses_other_bytes_before_its_mark(
    tmp_path: Path, small: None, pipe: Callable[[bytes], None], kind: str
) -> None:
    def opened(content: bytes) -> Reader:
        if kind == "stdin":
            pipe(content)
            return open_input("-")
        return open_input(save(tmp_path, f"rows.jsonl.{kind}", compressed(content, kind)))

    content = row_lines(60)
    chunks = list(opened(content).read(START, ["text"], ["text"]))
    start = chunks[3].position(0)
    assert texts(opened(content), start) == texts(opened(content))[sum(len(c.table) for c in chunks[:3]) :]
    for other in (content.replace(b'"0 ', b'"9 ', 1), content[: start.mark - 1], b""):
        with pytest.raises(ChangedError, match=r"rows\.jsonl|-: .*first .* bytes"):
            texts(opened(other), start)


@pytest.mark.parametrize("codec", CODECS)
def test_progress_of_a_compressed_file_is_that_of_its_stored_bytes(tmp_path: Path, small: None, codec: str) -> None:
    """Its second half compresses to nothing."""
    content = row_lines(1_500) + b'{"text": "same"}\n' * 5_000
    save(tmp_path, f"a.jsonl.{codec}", compressed(content, codec))
    save(tmp_path, f"b.jsonl.{codec}", compressed(row_lines(3), codec))
    save(tmp_path, f"c.jsonl.{codec}", compressed(content, codec))
    reader = open_input(str(tmp_path))
    shares = [reader.progress(c.position(i)) for c in reader.read(START, ["text"], []) for i in range(len(c.table) + 1)]
    assert shares[0] == 0 and shares[-1] == 1
    assert (np.diff(shares) >= 0).all()


def test_a_sample_of_a_compressed_file_tells_about_how_many_rows_there_are(tmp_path: Path) -> None:
    content = row_lines(40_000)
    reader = open_input(save(tmp_path, "rows.txt.gz", gzip.compress(content)))
    sample = take_sample(reader, ["text"], None)
    assert (len(sample.texts[0]), sample.is_whole) == (1_024, False)
    assert 30_000 < sample.total_rows < 50_000


def test_standard_input_can_begin_again_within_its_head(pipe: Callable[[bytes], None], small: None) -> None:
    content = row_lines(1_000)
    pipe(content)
    reader = open_input("-")
    assert len(take_sample(reader, ["text"], None).texts[0]) < 200
    next(reader.read(START, ["text"], ["text"]))
    expected = [json.loads(line)["text"] for line in content.splitlines()]
    assert texts(reader) == expected
    with pytest.raises(InputError, match=r"standard input.*save it to a file"):
        texts(reader)


def test_a_sample_of_standard_input_leaves_the_rest_to_the_job(pipe: Callable[[bytes], None]) -> None:
    """1,024 rows of 100 kB are more than the head holds."""
    line = json.dumps({"text": "x" * 100_000}).encode() + b"\n"
    pipe(line * 1_200)
    reader = open_input("-")
    assert 100 < len(take_sample(reader, ["text"], None).texts[0]) < 400
    assert sum(len(chunk.table) for chunk in reader.read(START, [], ["text"])) == 1_200


def test_standard_input_keeps_no_more_than_its_head(pipe: Callable[[bytes], None], small: None) -> None:
    class Endless(io.RawIOBase):
        left = 2 * MIB

        def read(self, size: int = -1) -> bytes:  # type: ignore[override]
            Endless.left -= size
            return b"a line of text\n" * (size // 15) + b"." * (size % 15) if Endless.left > 0 else b""

    pipe(b"")
    sys.stdin.buffer = Endless()  # type: ignore[misc,assignment]
    reader = open_input("-", options=ReaderOptions("text"))
    tracemalloc.start()
    for chunk in reader.read(START, ["text"], []):
        shares = reader.progress(chunk.position(0))
        assert 0 <= shares < 1
        del chunk
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < MIB // 4


def test_the_fingerprint_of_standard_input_is_its_head(pipe: Callable[[bytes], None]) -> None:
    found = []
    for content in (row_lines(9), row_lines(9), row_lines(10)):
        pipe(content)
        reader = open_input("-")
        before = reader.fingerprint()
        texts(reader)
        assert reader.fingerprint() == before and before[0]["path"] == "-"
        found.append(before)
    assert found[0] == found[1] != found[2]


def test_a_terminal_is_no_input(monkeypatch: pytest.MonkeyPatch) -> None:
    piped = Piped(b"")
    piped.isatty = lambda: True  # type: ignore[method-assign]
    monkeypatch.setattr(sys, "stdin", piped)
    with pytest.raises(UsageError, match="terminal"):
        open_input("-")


def test_a_closed_standard_input_is_no_input(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(UsageError, match="closed"):
        open_input("-")


def test_a_pipe_that_is_named_is_told_apart_from_nothing(tmp_path: Path) -> None:
    """<(command) of a shell."""
    os.mkfifo(tmp_path / "rows.jsonl")
    with pytest.raises(UsageError, match=r"pipe.* - <"):
        open_input(str(tmp_path / "rows.jsonl"))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("rows.jsonl", {"delimiter": ";"}, r"--delimiter.*jsonl.*csv"),
        ("rows.tsv", {"delimiter": ";"}, r"--delimiter.*tsv.*csv"),
        ("rows.txt", {"header": False}, r"--no-header.*text.*csv and tsv"),
        ("rows.parquet", {"header": False}, r"--no-header.*parquet"),
        ("rows.parquet.gz", {"input_format": "parquet"}, r"parquet is compressed inside"),
        ("rows.parquet.gz", {}, r"\.parquet\.gz is no format.*--input-format"),
        ("rows.gz", {}, r"\.gz is no format.*--input-format"),
        ("-", {"input_format": "parquet"}, r"--input-format parquet.*give a file"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(
    tmp_path: Path, pipe: Callable[[bytes], None], name: str, options: dict, message: str
) -> None:
    pipe(b"")
    address = name if name == "-" else save(tmp_path, name, b"")
    with pytest.raises(UsageError, match=message):
        open_input(address, options=ReaderOptions(**options))


@pytest.mark.parametrize(
    ("name", "kind"),
    [("rows.dat", "text"), ("rows", "text"), ("rows.gz", "text"), ("rows.jsonl", "text"), ("a.csv.gz", "csv")],
)
def test_a_format_that_is_asked_for_holds_whatever_the_name(tmp_path: Path, name: str, kind: str) -> None:
    content = b"text\nvalue\n"
    address = save(tmp_path, name, gzip.compress(content) if name.endswith(".gz") else content)
    found = texts(open_input(address, options=ReaderOptions(kind)))
    assert found == (["text", "value"] if kind == "text" else ["value"])


def test_a_file_that_a_glob_matches_twice_is_read_once(tmp_path: Path) -> None:
    (tmp_path / "a/b").mkdir(parents=True)
    save(tmp_path / "a/b", "rows.txt", b"x\ny\n")
    assert texts(open_input(f"{tmp_path}/**/**/*.txt")) == ["x", "y"]


def test_in_a_folder_a_format_picks_its_files(tmp_path: Path) -> None:
    for name in ("a.csv", "b.csv.gz", "c.jsonl", "_d.csv"):
        save(tmp_path, name, gzip.compress(b"text\nx\n") if name.endswith("gz") else b"text\nx\n")
    reader = open_input(str(tmp_path), options=ReaderOptions("csv"))
    assert [Path(file).name for file in reader.files] == ["a.csv", "b.csv.gz"]
    assert len(open_input(str(tmp_path), options=ReaderOptions("text")).files) == 3
    with pytest.raises(UsageError, match=r"different formats \(\.csv, \.jsonl\).*--input-format"):
        open_input(str(tmp_path))
