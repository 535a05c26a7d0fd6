"""--devices all on a processor: one process or several, by measuring both."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest

from packhorse.data import Position, Shard
from packhorse.devices import cores
from packhorse.errors import DeviceOutOfMemoryError, InterruptedRunError, WorkerDiedError
from packhorse.executors.executor import Stop
from packhorse.jobs import dividing
from packhorse.plans import Forecast
from packhorse.readers.cut import ShardRows
from packhorse.shard import Budget

BUDGET = Budget(100, None)


def job(**changes: Any) -> tuple[int, str]:
    """num_to_try() of a job of 100,000 rows at 100 rows/s, four forwards at a time, on two groups of cores."""
    told = {
        "devices": "all", "tune": "quick", "input": "rows.parquet", "device": "cpu", "workers": 4, "rows": 100_000.0,
        "rate": 1_000.0, "is_split": False, "free": 10_000, "weights": 1_000, "setup_s": 10.0,
    } | changes  # fmt: skip
    forecast = Forecast(rows=told["rows"], tokens=told["rows"] * 10, sample_rows=9, tokens_per_s=told["rate"])
    config = SimpleNamespace(devices=told["devices"], tune=told["tune"], input=told["input"])
    backend = SimpleNamespace(free_bytes=lambda _: told["free"])
    loader = SimpleNamespace(placement=SimpleNamespace(is_split=told["is_split"]), backend=backend)
    plan = SimpleNamespace(device=told["device"], workers=told["workers"], forecast=forecast)
    return dividing.num_to_try(config, loader, plan, told["weights"], told["setup_s"])  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, (2, "")),
        ({"devices": "auto"}, (1, "")),
        ({"device": "cuda"}, (1, "")),
        ({"is_split": True}, (1, "")),
        ({"workers": 1}, (1, "one process: a forward has all cores")),
        ({"tune": "off"}, (1, "one process: whether 2 are faster was not measured")),
        ({"input": "-"}, (1, "one process: whether 2 are faster was not measured")),
        ({"rate": None}, (1, "one process: whether 2 are faster was not measured")),
        ({"rows": 50_000.0}, (1, "one process: 50,000 rows are too few to repay trying 2")),
        ({"rows": 50_000.0, "tune": "full"}, (2, "")),
        ({"free": 2_500}, (1, "one process: 2 more need 0.0 GiB for their weights")),
        ({"free": None}, (2, "")),
    ],
)
def test_several_are_tried_where_that_is_open_and_worth_it(
    monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], expected: tuple[int, str]
) -> None:
    monkeypatch.setattr(dividing, "num_groups", lambda: 2)
    assert job(**changes) == expected


class Fake:
    """An executor whose clock is made up."""

    def __init__(self, clock: list[float], seconds: float, error: BaseException | None = None) -> None:
        self.workers, self._clock, self._seconds, self._error = [0, 1, 2], clock, seconds, error
        self.happened: list[str] = []

    def run(self, shards: Iterator[ShardRows], budgets: Any, commit: Any, lower: Any, live: Any, stop: Any) -> None:
        count = len(list(shards))
        assert count in (2, 4) and budgets.at(0) == BUDGET
        self._clock[0] += self._seconds if count == 4 else 60.0  # a slow start does not count
        if self._error is not None:
            raise self._error

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *_: self.happened.append(name)


def compared(
    monkeypatch: pytest.MonkeyPatch, several_s: float, alone_s: float, error: BaseException | None = None
) -> tuple[Any, Fake, list[str]]:
    clock, said = [0.0], list[str]()
    monkeypatch.setattr(dividing, "time", SimpleNamespace(perf_counter=lambda: clock[0]))
    several = Fake(clock, several_s, error)
    shard = Shard(0, 0, 5, Position(0, 0), Position(0, 5))
    rows = [ShardRows(shard, pa.table({"text": ["a"] * 5}), {})] * 4
    one: Any = Fake(clock, alone_s)
    found = dividing.several_if_faster(one, lambda: several, rows, BUDGET, Stop(), said.append)  # type: ignore[arg-type, return-value]
    return found, several, said


def test_several_are_taken_where_they_are_clearly_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    found, several, said = compared(monkeypatch, 2.0, 2.5)
    assert found is several and several.happened == ["wait_for_all"]
    assert said == ["3 processes: they compute 1.25 times the rows/s of one"]


def test_else_they_end(monkeypatch: pytest.MonkeyPatch) -> None:
    found, several, said = compared(monkeypatch, 2.0, 2.02)
    assert found is None and several.happened == ["wait_for_all", "close"]
    assert said == ["one process: 3 compute 1.01 times its rows/s"]


@pytest.mark.parametrize("error", [DeviceOutOfMemoryError("too much"), WorkerDiedError("killed\nmore")])
def test_where_several_cannot_run_the_job_goes_on_in_one(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    found, several, said = compared(monkeypatch, 1.0, 9.0, error)
    assert found is None and several.happened == ["wait_for_all", "kill"]
    assert said == [f"one process: several could not be compared with it: {str(error).splitlines()[0]}"]


def test_a_stop_ends_them(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InterruptedRunError):
        compared(monkeypatch, 1.0, 9.0, InterruptedRunError(2, None))


@pytest.mark.parametrize(
    ("places", "caches", "expected"),
    [
        ([0, 0, 1, 1], ["0-1", "0-1", "2-3", "2-3"], 2),  # memory nodes
        ([0, 0, 0, 0], ["0", "1", "2", "3"], 4),  # one node, a last cache for each core
        ([0, 0, 0, 0], ["0-3"] * 4, 2),
        ([-1], [""], 1),
    ],
)
def test_groups_of_cores(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, places: list[int], caches: list[str], expected: int
) -> None:
    for core, (node, shared) in enumerate(zip(places, caches, strict=True)):
        folder = tmp_path / f"cpu{core}"
        for level, cores_of in enumerate([str(core), shared]):
            (folder / "cache" / f"index{level}").mkdir(parents=True)
            (folder / "cache" / f"index{level}" / "shared_cpu_list").write_text(f"{cores_of}\n")
        if node >= 0:
            (folder / f"node{node}").mkdir()
    monkeypatch.setattr(cores, "CPUS", tmp_path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(len(places))))
    assert cores.num_groups() == expected
