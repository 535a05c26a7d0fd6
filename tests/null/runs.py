"""Runs of the null backend: started, stopped at a chosen point, and read back."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

import packhorse
from packhorse.errors import InterruptedRunError
from packhorse.executors.local import Stop
from packhorse.metrics import RunReport


def run(model: Path, rows: Any, output: Path, **settings: Any) -> RunReport:
    return packhorse.run(model, rows, output, backend="null", **settings)


class AfterLooks(threading.Event):
    """An event that is set once it was looked at `looks` times: a signal that arrives at a chosen point of a run."""

    def __init__(self, looks: int) -> None:
        super().__init__()
        self._looks = looks

    def is_set(self) -> bool:
        self._looks -= 1
        if self._looks < 0:
            self.set()
        return super().is_set()


def run_until_stopped(model: Path, rows: Any, output: Path, looks: int, **settings: Any) -> bool:
    """Whether the run was stopped; lanes look at the event before each shard and after each batch."""
    try:
        run(model, rows, output, stop=Stop(AfterLooks(looks), signum=15), **settings)
    except InterruptedRunError as error:
        assert error.exit_code == 143
        return True
    return False


def parts(folder: Path) -> dict[str, bytes]:
    """The parts of an output, or of a one-file output's work folder, by name."""
    return {p.name: p.read_bytes() for p in sorted(folder.glob("part-*"))}


def rows_of(output: Path) -> list[dict[str, Any]]:
    """All rows of an output, in the order of its parts."""
    files = sorted(output.glob("part-*")) if output.is_dir() else [output]
    rows: list[dict[str, Any]] = []
    for file in files:
        rows += strict_lines(file) if file.suffix == ".jsonl" else pq.read_table(file).to_pylist()
    return rows


def strict_lines(path: Path) -> list[dict[str, Any]]:
    """Each line as JSON of RFC 8259: no NaN, no Infinity, each name once in an object."""
    lines = path.read_bytes().decode().split("\n")
    assert lines.pop() == ""
    return [strict_json(line) for line in lines]


def strict_json(text: str) -> Any:
    return json.loads(text, parse_constant=_refused, object_pairs_hook=_each_name_once)


def _refused(name: str) -> None:
    raise AssertionError(f"{name} is not JSON")


def _each_name_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = [name for name, _ in pairs]
    assert len(set(names)) == len(names), f"a name stands twice in {names}"
    return dict(pairs)
