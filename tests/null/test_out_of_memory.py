"""A device that is too small: the budget is lowered, the output stays the same."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from packhorse.data import Batch
from packhorse.errors import DeviceOutOfMemoryError
from packhorse.executors.local import Stop, run_shards
from packhorse.metrics import LiveCounters
from packhorse.outputs.manifest import RunFolder
from packhorse.shard import Budget, Budgets, Forwarded, forward, predict, prepare
from tests.null.reference import Prediction, predicted, predictions, some_texts
from tests.null.runs import parts, rows_of, run
from tests.null.stages import rows_of_texts, run_on_device, shards_of_texts, stages

TEXTS = some_texts(400)
EXPECTED = predictions(TEXTS)
FAILED = Prediction(None, None, "out_of_memory")
LONGER_THAN_40 = [text is not None and len(text.split()) > 38 for text in TEXTS]  # and its two special tokens


class Job:
    """Runs shards and keeps what was committed and how the budget was lowered."""

    def __init__(self, budget: Budget, shard_rows: int = 90, **device: Any) -> None:
        self.tables: list[pa.Table] = []
        self.lowered: list[tuple[int, Budget]] = []
        self.live = LiveCounters()
        made = stages(**device)
        shards = shards_of_texts(TEXTS, shard_rows)
        outcome = run_shards(shards, made, Budgets([(0, budget)]), self._commit, self._lower, self.live, Stop())
        made.tokenizer.close()
        self.counters = outcome.counters
        self.found = predicted(pa.concat_tables(self.tables).to_pylist())

    def _commit(self, _done: Forwarded, table: pa.Table) -> None:
        self.tables.append(table)

    def _lower(self, shard: int, budget: Budget) -> None:
        self.lowered.append((shard, budget))


@pytest.mark.parametrize("capacity", [64, 100, 1_000])
@pytest.mark.parametrize("batching", ["padded", "fixed"])
@pytest.mark.parametrize("dedup", [True, False])
def test_predictions_do_not_depend_on_what_fits(capacity: int, batching: str, dedup: bool) -> None:
    made = stages(capacity, batching=batching, dedup=dedup)
    budget = Budget(16_384, 32 if batching == "fixed" else None)
    assert predicted(predict(rows_of_texts(TEXTS), made, budget).to_pylist()) == EXPECTED


def test_a_row_that_does_not_fit_alone_is_an_error_and_its_copies_too() -> None:
    made = stages(capacity_tokens=40)
    found = predicted(predict(rows_of_texts(TEXTS), made, Budget(16_384, None)).to_pylist())
    assert found == [FAILED if long else row for long, row in zip(LONGER_THAN_40, EXPECTED, strict=True)]
    assert found.count(FAILED) > 50


def test_nothing_fits() -> None:
    found = predicted(predict(rows_of_texts(TEXTS), stages(capacity_tokens=0), Budget(16_384, None)).to_pylist())
    assert [row.error for row in found] == ["null_text" if text is None else "out_of_memory" for text in TEXTS]


def test_a_run_lowers_its_budget_by_halves_and_says_from_which_shard_on() -> None:
    job = Job(Budget(1_024, None), capacity_tokens=130)
    assert job.found == EXPECTED
    assert job.lowered == [(0, Budget(512, None)), (0, Budget(256, None)), (0, Budget(128, None))]


def test_a_later_shard_may_be_the_first_that_does_not_fit() -> None:
    short_then_long = ["a"] * 100 + [f"{'a ' * 30}{word}" for word in ("cat", "dog", "end", "film")]
    made = stages(capacity_tokens=120)
    tables: list[pa.Table] = []
    lowered: list[tuple[int, Budget]] = []
    run_shards(
        shards_of_texts(short_then_long, 50),
        made,
        Budgets([(0, Budget(200, 32))]),
        lambda _, table: tables.append(table),
        lambda shard, budget: lowered.append((shard, budget)),
        LiveCounters(),
        Stop(),
    )
    assert predicted(pa.concat_tables(tables).to_pylist()) == predictions(short_then_long)
    assert lowered == [(2, Budget(100, 16))]


def test_rows_of_a_shard_that_is_computed_again_count_once() -> None:
    job = Job(Budget(4_096, None), capacity_tokens=70)
    assert job.live.rows == job.counters.rows == len(TEXTS)
    assert job.live.real_tokens == job.counters.real_tokens == job.live.planned_tokens
    assert job.live.computed_tokens == job.counters.computed_tokens
    assert job.counters.errors == {"null_text": TEXTS.count(None)}


def test_rows_that_do_not_fit_are_counted_by_kind() -> None:
    job = Job(Budget(4_096, None), capacity_tokens=40)
    assert job.found == [FAILED if long else row for long, row in zip(LONGER_THAN_40, EXPECTED, strict=True)]
    assert job.counters.errors == {"null_text": TEXTS.count(None), "out_of_memory": sum(LONGER_THAN_40)}
    assert job.lowered[-1][1].max_batch_tokens >= 1


def test_a_batch_of_fixed_size_is_halved_too() -> None:
    job = Job(Budget(1_024, 32), capacity_tokens=64 * 8, batching="fixed")
    assert job.found == EXPECTED
    assert [budget.batch_size for _, budget in job.lowered] == [16, 8]


def test_no_batch_is_larger_than_the_lowered_budget_says() -> None:
    seen: list[int] = []
    made = stages(before_batch=lambda batch: seen.append(batch.num_rows * batch.max_seqlen))
    predict(rows_of_texts(TEXTS), made, Budget(128, None))
    assert max(seen) <= 128 and len(seen) > 10


def test_what_was_prepared_with_a_larger_budget_is_planned_anew() -> None:
    made = stages(capacity_tokens=128)
    prepared = prepare(rows_of_texts(TEXTS), made, Budget(4_096, None))
    with pytest.raises(DeviceOutOfMemoryError):
        forward(prepared, made, Budget(4_096, None), lambda *_: None)
    done = forward(prepared, made, Budget(128, None), lambda *_: None)
    assert {error.kind for error in done.errors.values()} == {"null_text"}


class UnpluggedError(Exception): ...


class Cable:
    """Is pulled before the batch of that number, and with a folder once its first part is there."""

    def __init__(self, batches: int, folder: Path | None = None) -> None:
        self.left, self._folder = batches, folder

    def __call__(self, batch: Batch) -> None:
        self.left -= 1
        if self.left < 0:
            deadline = time.monotonic() + 30
            while self._folder and not parts(self._folder) and time.monotonic() < deadline:
                time.sleep(0.01)
            raise UnpluggedError


def test_a_lowered_budget_is_in_the_manifest_and_a_resumed_run_begins_with_it(null_model: Path, tmp_path: Path) -> None:
    job: dict[str, Any] = {"shard_rows": 90, "max_batch_tokens": 1_024}
    run(null_model, {"text": TEXTS}, tmp_path / "enough", **job)
    with pytest.raises(UnpluggedError):
        run_on_device(null_model, {"text": TEXTS}, tmp_path / "small", 130, Cable(40, tmp_path / "small"), **job)
    manifest = RunFolder(str(tmp_path / "small"), is_file=False).manifest()
    assert manifest["budgets"] == [[0, 1_024, None], [0, 512, None], [0, 256, None], [0, 128, None]]
    assert 0 < len(parts(tmp_path / "small")) < 5
    run_on_device(null_model, {"text": TEXTS}, tmp_path / "small", 130, **job)
    assert RunFolder(str(tmp_path / "small"), is_file=False).manifest()["budgets"] == manifest["budgets"]
    assert parts(tmp_path / "small") == parts(tmp_path / "enough")
    assert predicted(rows_of(tmp_path / "small")) == EXPECTED


@pytest.mark.parametrize("batches", [0, 1, 5, 12, 20])
def test_a_device_that_failed_at_any_batch_is_gone_on_from(null_model: Path, tmp_path: Path, batches: int) -> None:
    with pytest.raises(UnpluggedError):
        run_on_device(null_model, {"text": TEXTS}, tmp_path, None, Cable(batches), shard_rows=50, max_batch_tokens=512)
    run(null_model, {"text": TEXTS}, tmp_path, shard_rows=50, max_batch_tokens=512)
    assert predicted(rows_of(tmp_path)) == EXPECTED
