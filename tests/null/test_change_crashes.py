"""A crash at any step of a whole job that mirrors, adds or retries, then the same command: the bytes of one go."""

from __future__ import annotations

import gzip
import json
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import packhorse
from packhorse.config import RunConfig
from packhorse.executors.local import Stop
from packhorse.jobs.job import Job
from packhorse.loading import Loader
from packhorse.outputs.disk import Disk
from packhorse.outputs.manifest import RunFolder
from packhorse.outputs.mirrored import MirroredFolder
from packhorse.outputs.stores.local import LocalStore
from packhorse.readers import open_input
from packhorse.readers.options import ReaderOptions
from packhorse.report.reporter import Reporter
from packhorse.writers import make_writer
from tests.null.reference import Prediction, predicted, predictions, some_texts
from tests.null.runs import rows_of
from tests.null.stages import Device
from tests.null.test_manifest import CrashError, CrashingDisk

TEXTS = {"a": some_texts(70, 1), "b": some_texts(55, 2), "c": some_texts(25, 3)}


def save(folder: Path, names: str) -> Path:
    folder.mkdir(exist_ok=True)
    for name in names:
        lines = b"".join(json.dumps({"text": text, "n": i}).encode() + b"\n" for i, text in enumerate(TEXTS[name]))
        (folder / f"{name}.jsonl.gz").write_bytes(gzip.compress(lines, mtime=0))
    return folder


def work(model: Path, rows: Path, output: Path, disk: Disk, capacity_tokens: int | None = None, **given: Any) -> None:
    """What packhorse.run does, on that disk, and on a device of that size."""
    settings = {"model": str(model), "backend": "null", "input": str(rows), "output": str(output), "progress": "none"}
    config = RunConfig(**settings, shard_rows=30, max_batch_tokens=256, output_format="jsonl", **given)
    reopen = partial(open_input, config.input, [], ReaderOptions.of(config))
    loader = Device(config, capacity_tokens, None) if capacity_tokens else Loader(config)
    kind = MirroredFolder if config.mirror else RunFolder
    folder = kind(config.output, False, LocalStore(disk), make_writer(".jsonl").files)
    Job(config, loader, reopen(), folder, Reporter("none"), Stop(), lambda groups: reopen(groups=groups)).run()


def visible(output: Path) -> dict[str, bytes]:
    """All of an output but what tells times."""
    files = [p for p in output.rglob("*") if p.is_file() and p.suffix != ".tmp" and p.stem not in ("lock", "report")]
    return {str(p.relative_to(output)): p.read_bytes() for p in sorted(files)}


def begin(kind: str, model: Path, folder: Path) -> tuple[Path, dict[str, Any]]:
    """What is there before; the input and the settings of the call that crashes."""
    if kind == "retry_errors":
        rows = save(folder / "in", "abc")
        work(model, rows, folder / "before", Disk(), 40)
    else:
        rows = save(folder / "in", "b")
        if kind == "append":
            work(model, rows, folder / "before", Disk())
        save(rows, "ac")
    return rows, {kind: True}


@pytest.mark.parametrize("kind", ["mirror", "append", "retry_errors"])
def test_a_crash_at_any_step(null_model: Path, tmp_path: Path, kind: str) -> None:
    rows, settings = begin(kind, null_model, tmp_path)
    before = tmp_path / "before"
    if before.exists():
        shutil.copytree(before, tmp_path / "once")
    work(null_model, rows, tmp_path / "once", Disk(), **settings)
    expected, crashes = visible(tmp_path / "once"), 0
    for steps in range(0, 1_000, 3):
        output = tmp_path / f"{steps}"
        if before.exists():
            shutil.copytree(before, output)
        try:
            work(null_model, rows, output, CrashingDisk(steps), **settings)
        except CrashError:
            crashes += 1
            if (output / "_packhorse/manifest.json").exists():
                packhorse.verify(output)
            work(null_model, rows, output, Disk(), **settings)
        else:
            break
        assert visible(output) == expected
        assert packhorse.verify(output).is_finished
    assert crashes > 8


def test_what_a_retry_over_compressed_files_gives(null_model: Path, tmp_path: Path) -> None:
    """Shards of several files, read again from the middle of one."""
    rows, settings = begin("retry_errors", null_model, tmp_path)
    texts = [text for name in "abc" for text in TEXTS[name]]
    failed = predicted(rows_of(tmp_path / "before"))
    assert failed.count(Prediction(None, None, "out_of_memory")) > 20
    work(null_model, rows, tmp_path / "before", Disk(), **settings)
    assert predicted(rows_of(tmp_path / "before")) == predictions(texts)
    assert [row["n"] for row in rows_of(tmp_path / "before")] == [i for n in "abc" for i in range(len(TEXTS[n]))]
