"""The same command again: goes on after a stop to the same bytes, rests when finished, refuses other settings."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import packhorse
from packhorse.errors import ChangedError, DamagedError, PackhorseError, RefusedError, RowFailedError
from tests.models import save_null_model
from tests.null.reference import predicted, predictions, some_texts
from tests.null.runs import parts, rows_of, run, run_until_stopped

TEXTS = some_texts(300)
ROWS = pa.table({"text": TEXTS, "colour": pa.array([f"c{i * i % 23}" for i in range(300)]).dictionary_encode()})
JOB: dict[str, Any] = {"text_column": "text", "shard_rows": 25, "max_batch_tokens": 400}


def as_parquet(folder: Path) -> Path:
    """Three files of several row groups."""
    for i, first in enumerate((0, 60, 190)):
        rows = ROWS.slice(first, (60, 130, 110)[i])
        (folder / "in").mkdir(exist_ok=True)
        pq.write_table(rows, folder / "in" / f"{i}.parquet", row_group_size=40)
    return folder / "in"


def as_lines(folder: Path) -> Path:
    run_lines = [
        f'{{"text": {"null" if t is None else chr(34) + t + chr(34)}, "n": {i}}}\n\n' for i, t in enumerate(TEXTS)
    ]
    (folder / "in.jsonl").write_text("\ufeff" + "".join(run_lines), encoding="utf-8")
    return folder / "in.jsonl"


def in_memory(_: Path) -> pa.Table:
    return ROWS


def output_bytes(output: Path) -> dict[str, bytes]:
    return parts(output) if output.is_dir() else {"file": output.read_bytes()}


def records(output: Path) -> dict[str, bytes]:
    root = output if output.is_dir() else output.with_name(output.name + ".packhorse")
    return {p.name: p.read_bytes() for p in sorted((root / "_packhorse/shards").glob("*.json"))}


@pytest.mark.parametrize(
    ("source", "name"),
    [(as_parquet, "folder"), (as_lines, "whole.jsonl"), (in_memory, "whole.parquet"), (as_lines, "folder")],
)
def test_a_stopped_run_goes_on_to_the_same_bytes(
    null_model: Path, tmp_path: Path, source: Callable[[Path], Any], name: str
) -> None:
    rows = source(tmp_path)
    expected = tmp_path / "uninterrupted" / name
    run(null_model, rows, expected, **JOB)
    stopped_at = set()
    for looks in range(0, 45, 6):
        output = tmp_path / f"{looks}" / name
        if run_until_stopped(null_model, rows, output, looks, **JOB):
            stopped_at.add(len(records(output)))
            report = run(null_model, rows, output, **JOB)
            assert (report.status, report.rows) == ("finished", 300)
        assert output_bytes(output) == output_bytes(expected)
        assert records(output) == records(expected)
        assert packhorse.verify(output).is_finished
    assert len(stopped_at) > 3


def test_a_run_that_is_stopped_again_and_again_ends_with_the_same_bytes(null_model: Path, tmp_path: Path) -> None:
    run(null_model, ROWS, tmp_path / "once", **JOB)
    stops = 0
    while run_until_stopped(null_model, ROWS, tmp_path / "often", 9, **JOB):
        stops += 1
        assert stops < 100
    assert stops > 1
    assert output_bytes(tmp_path / "often") == output_bytes(tmp_path / "once")


def test_what_a_stopped_run_shows_is_final(null_model: Path, tmp_path: Path) -> None:
    assert run_until_stopped(null_model, ROWS, tmp_path / "out", 20, **JOB)
    before = parts(tmp_path / "out")
    assert 0 < len(before) < 12
    assert predicted(rows_of(tmp_path / "out")) == predictions(TEXTS)[: 25 * len(before)]
    run(null_model, ROWS, tmp_path / "out", **JOB)
    assert before.items() <= parts(tmp_path / "out").items()


def test_the_report_of_a_resumed_run_counts_all_rows(null_model: Path, tmp_path: Path) -> None:
    once = run(null_model, ROWS, tmp_path / "once", **JOB)
    assert run_until_stopped(null_model, ROWS, tmp_path / "out", 20, **JOB)
    done = 25 * len(parts(tmp_path / "out"))
    report = run(null_model, ROWS, tmp_path / "out", **JOB)
    assert report.counters.deterministic() == once.counters.deterministic()
    assert (report.rows, report.this_run.rows) == (300, 300 - done)


@pytest.mark.parametrize("name", ["folder", "whole.parquet"])
def test_a_finished_run_is_left_as_it_is(null_model: Path, tmp_path: Path, name: str) -> None:
    first = run(null_model, ROWS, tmp_path / name, **JOB)

    def state() -> dict[str, tuple[int, bytes]]:
        files = [p for p in tmp_path.rglob("*") if p.is_file() and p.name != "lock"]
        return {str(p): (p.stat().st_mtime_ns, p.read_bytes()) for p in files}

    before = state()
    again = run(null_model, ROWS, tmp_path / name, **JOB)
    assert (again.status, again.rows, again.sha256) == ("already_finished", 300, first.sha256)
    assert again.counters.deterministic() == first.counters.deterministic()
    assert state() == before


CHANGES: dict[str, tuple[Any, str]] = {
    "shard_rows": (26, "settings.shard_rows: 25 then, 26 now"),
    "max_batch_tokens": (401, "settings.max_batch_tokens: 400 then, 401 now"),
    "max_length": (9, "settings.max_length: null then, 9 now"),
    "limit": (7, "settings.limit: null then, 7 now"),
    "keep": (("text",), "settings.keep: null then"),
    "output_prefix": ("my_", "settings.output_prefix"),
    "scores": ("all", "settings.scores"),
    "batching": ("padded", "settings.batching"),
    "dedup": (False, "settings.dedup: true then, false now"),
    "on_error": ("fail", ""),
    "max_error_rate": (0.9, ""),
    "tokenizer_threads": (1, ""),
    "quiet": (True, ""),
}


@pytest.mark.parametrize("name", CHANGES)
def test_other_settings_are_refused_by_name_unless_they_change_nothing(
    null_model: Path, tmp_path: Path, name: str
) -> None:
    value, message = CHANGES[name]
    run(null_model, ROWS, tmp_path, **JOB)
    if not message:
        assert run(null_model, ROWS, tmp_path, **JOB | {name: value}).status == "already_finished"
        return
    before = parts(tmp_path)
    with pytest.raises(ChangedError, match=message) as caught:
        run(null_model, ROWS, tmp_path, **JOB | {name: value})
    assert caught.value.exit_code == 3 and "--overwrite" in str(caught.value)
    assert parts(tmp_path) == before


def test_other_rows_are_refused(null_model: Path, tmp_path: Path) -> None:
    rows = as_parquet(tmp_path)
    run(null_model, rows, tmp_path / "out", **JOB)
    pq.write_table(ROWS.slice(1), rows / "1.parquet")
    with pytest.raises(ChangedError, match=r"input.*size"):
        run(null_model, rows, tmp_path / "out", **JOB)
    run(null_model, ROWS, tmp_path / "memory", **JOB)
    with pytest.raises(ChangedError, match=r"input.*sha256"):
        run(null_model, ROWS.slice(1), tmp_path / "memory", **JOB)


def test_one_more_file_is_refused(null_model: Path, tmp_path: Path) -> None:
    rows = as_parquet(tmp_path)
    run(null_model, rows, tmp_path / "out", **JOB)
    shutil.copy(rows / "2.parquet", rows / "3.parquet")
    with pytest.raises(ChangedError, match="input"):
        run(null_model, rows, tmp_path / "out", **JOB)


def test_another_model_is_refused_by_the_file_that_differs_and_a_moved_one_is_not(tmp_path: Path) -> None:
    model = save_null_model(tmp_path / "model")
    run(model, ROWS, tmp_path / "out", **JOB)
    moved = model.rename(tmp_path / "moved")
    assert run(moved, ROWS, tmp_path / "out", **JOB).status == "already_finished"
    with (moved / "config.json").open("a") as file:
        file.write("\n")
    with pytest.raises(ChangedError, match=r"model\.files\.config\.json"):
        run(moved, ROWS, tmp_path / "out", **JOB)


def test_overwrite_leaves_nothing_of_the_earlier_run(null_model: Path, tmp_path: Path) -> None:
    for name in ("folder", "whole.parquet"):
        run(null_model, ROWS, tmp_path / name, **JOB)
        run(null_model, {"text": ["good"]}, tmp_path / name, overwrite=True)
        assert predicted(rows_of(tmp_path / name)) == predictions(["good"])
        assert packhorse.verify(tmp_path / name).rows == 1
    assert list(parts(tmp_path / "folder")) == ["part-000000.parquet"]


BAD_AT_THE_END = [f"row {i}" for i in range(55)] + [None] * 5


def stopped_by_a_bad_row(model: Path, output: Path) -> list[Path]:
    """Commits five shards, whose parts it gives, and fails in the sixth."""
    with pytest.raises(RowFailedError):
        run(model, {"text": BAD_AT_THE_END}, output, shard_rows=10, on_error="fail")
    root = output if output.is_dir() else output.with_name(output.name + ".packhorse")
    return sorted(root.glob("part-*"))


def goes_on_to_all_rows_or_refuses(model: Path, output: Path) -> bool:
    try:
        run(model, {"text": BAD_AT_THE_END}, output, shard_rows=10)
    except PackhorseError:
        return True
    return predicted(rows_of(output)) == predictions(BAD_AT_THE_END)


@pytest.mark.parametrize("name", ["folder", "whole.parquet", "whole.jsonl"])
def test_a_resumed_run_does_not_finish_without_a_part(null_model: Path, tmp_path: Path, name: str) -> None:
    stopped_by_a_bad_row(null_model, tmp_path / name)[1].unlink()
    assert goes_on_to_all_rows_or_refuses(null_model, tmp_path / name)


@pytest.mark.parametrize("name", ["whole.parquet", "whole.jsonl"])
def test_one_file_is_not_put_together_of_parts_that_are_not_as_committed(
    null_model: Path, tmp_path: Path, name: str
) -> None:
    found = stopped_by_a_bad_row(null_model, tmp_path / name)
    shutil.copy(found[3], found[1])
    assert goes_on_to_all_rows_or_refuses(null_model, tmp_path / name)


@pytest.mark.parametrize("name", ["folder", "whole.parquet"])
def test_a_finished_run_whose_output_is_gone_does_not_say_it_is_there(
    null_model: Path, tmp_path: Path, name: str
) -> None:
    run(null_model, ROWS, tmp_path / name, **JOB)
    gone = tmp_path / name / "part-000003.parquet" if name == "folder" else tmp_path / name
    gone.unlink()
    try:
        run(null_model, ROWS, tmp_path / name, **JOB)
    except PackhorseError:
        return
    assert predicted(rows_of(tmp_path / name)) == predictions(TEXTS)


@pytest.mark.parametrize("content", [b"", b"{}", b"null", b"[]", b"3", b"\xff", b'{"format": 1}'])
def test_a_broken_record_is_named(null_model: Path, tmp_path: Path, content: bytes) -> None:
    stopped_by_a_bad_row(null_model, tmp_path)
    for file in ("shards/000002.json", "manifest.json"):
        (tmp_path / "_packhorse" / file).write_bytes(content)
        for step in (lambda: packhorse.verify(tmp_path), lambda: run(null_model, {"text": ["good"] * 60}, tmp_path)):
            with pytest.raises((DamagedError, RefusedError)):
                step()
