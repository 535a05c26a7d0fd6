"""Jobs over several worker processes: rows, faults planted in the workers, and a deadline against hanging."""

from __future__ import annotations

import random
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.models import WORDS

DEADLINE_S = 100


@contextmanager
def deadline(seconds: int = DEADLINE_S) -> Iterator[None]:
    """Raises where the block takes longer."""

    def late(_signum: int, _frame: FrameType | None) -> None:
        raise AssertionError(f"still not at its end after {seconds} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def texts(count: int, seed: int = 0) -> list[str | None]:
    """Of 0 to 90 words, some null, some twice."""
    draw = random.Random(seed)
    made: list[str | None] = [" ".join(draw.choices(WORDS, k=draw.randint(0, 90))) for _ in range(count)]
    return [None if i % 53 == 0 else made[i % (count * 4 // 5)] for i in range(count)]


def write_rows(path: Path, count: int) -> Path:
    pq.write_table(pa.table({"id": range(count), "text": texts(count)}), path, row_group_size=170)
    return path


def plant(monkeypatch: pytest.MonkeyPatch, folder: Path, code: str) -> None:
    """The code runs in every worker process before anything else does; `null` is the backend's module in it."""
    folder.mkdir(exist_ok=True)
    (folder / "sitecustomize.py").write_text("import packhorse.backends.null as null\n" + code)
    monkeypatch.syspath_prepend(str(folder))


def workers_of(pid: int | None = None) -> list[psutil.Process]:
    """Worker processes that the process has started and that live."""
    found = []
    for child in psutil.Process(pid).children(recursive=True):
        try:
            if "packhorse.jobs.worker" in child.cmdline() and child.status() != psutil.STATUS_ZOMBIE:
                found.append(child)
        except psutil.NoSuchProcess:
            continue
    return found
