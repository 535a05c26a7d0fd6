"""Three lanes at once: what fails in one ends all of them with its own message, and memory stays bounded."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pyarrow as pa
import pytest

from packhorse.config import EngineConfig
from packhorse.data import Batch
from packhorse.executors.lanes import Breaker, Channel, LaneStoppedError
from packhorse.executors.local import FORWARDED_AHEAD, PREPARED_AHEAD, Stop, run_shards
from packhorse.metrics import LiveCounters
from packhorse.readers.cut import ShardRows
from packhorse.sequences import Results, Tokenized
from packhorse.shard import Budget, Budgets
from packhorse.tasks.text_classification import TextClassification
from tests.null.reference import predicted, predictions
from tests.null.runs import AfterLooks
from tests.null.stages import shards_of_texts, stages

DEADLINE_S = 10.0
TEXTS: list[str | None] = [f"row {i}" for i in range(200)]
SHARD_ROWS = 10
# In the forward lane and in the two lanes beside it one shard each, the rest between them.
MOST_SHARDS = PREPARED_AHEAD + FORWARDED_AHEAD + 3


class ReadError(Exception): ...


class ModelBrokeError(Exception): ...


class DiskFullError(Exception): ...


class TokenizerBrokeError(Exception): ...


class TaskBrokeError(Exception): ...


class BrokenTokenizer:
    fingerprint = ""

    def tokenize(self, texts: Sequence[str | None], pairs: Sequence[str | None] | None) -> Tokenized:
        raise TokenizerBrokeError

    def close(self) -> None: ...


class BrokenTask(TextClassification):
    def finish(self, results: Results) -> list[pa.Array]:
        raise TaskBrokeError


class Run:
    """`run_shards` under a watchdog, with places where a test can break it."""

    def __init__(
        self,
        texts: list[str | None] = TEXTS,
        on_read: Callable[[int], None] = lambda _: None,
        on_batch: Callable[[Batch], None] | None = None,
        on_commit: Callable[[int], None] = lambda _: None,
        stop: Stop | None = None,
        **other_stages: Any,
    ) -> None:
        self.texts, self.on_read, self.on_commit, self.stop = texts, on_read, on_commit, stop or Stop()
        self.stages = dataclasses.replace(stages(before_batch=on_batch), **other_stages)
        self.tables: list[pa.Table] = []
        self.error: BaseException | None = None
        before = set(threading.enumerate())
        worker = threading.Thread(target=self._run, daemon=True)
        worker.start()
        worker.join(DEADLINE_S)
        assert not worker.is_alive(), "the run hangs"
        self.stages.tokenizer.close()
        self.left = [thread.name for thread in threading.enumerate() if thread not in before]

    def _run(self) -> None:
        try:
            budgets = Budgets([(0, Budget(4_096, None))])
            run_shards(
                self._read(),
                self.stages,
                budgets,
                self._commit,
                lambda *_: None,
                LiveCounters(),
                self.stop,
            )
        except BaseException as error:  # noqa: BLE001 - looked at by the test
            self.error = error

    def _read(self) -> Iterator[ShardRows]:
        for index, rows in enumerate(shards_of_texts(self.texts, SHARD_ROWS)):
            self.on_read(index)
            yield rows

    def _commit(self, _done: Any, table: pa.Table) -> None:
        self.on_commit(len(self.tables))
        self.tables.append(table)


def fails_at(index: int, error: Exception) -> Callable[[int], None]:
    def check(at: int) -> None:
        if at == index:
            raise error

    return check


def test_all_shards_are_committed_in_order() -> None:
    run = Run()
    assert run.error is None and not run.left
    assert [len(table) for table in run.tables] == [SHARD_ROWS] * 20
    assert predicted(pa.concat_tables(run.tables).to_pylist()) == predictions(TEXTS)


def test_no_shards_are_no_trouble() -> None:
    run = Run(texts=[])
    assert (run.error, run.tables, run.left) == (None, [], [])


@pytest.mark.parametrize("index", [0, 1, 7, 19])
def test_an_error_of_the_reader_ends_the_run(index: int) -> None:
    error = ReadError(f"shard {index} cannot be read")
    run = Run(on_read=fails_at(index, error))
    assert run.error is error and not run.left
    assert len(run.tables) <= index


@pytest.mark.parametrize("index", [0, 1, 7, 19])
def test_an_error_of_the_model_ends_the_run(index: int) -> None:
    error, batches = ModelBrokeError("the device fell off the bus"), iter(range(1_000))
    run = Run(on_batch=lambda _: fails_at(index, error)(next(batches)))
    assert run.error is error and not run.left
    assert len(run.tables) <= index


@pytest.mark.parametrize("index", [0, 1, 7, 19])
def test_an_error_of_a_commit_ends_the_run(index: int) -> None:
    error = DiskFullError("no space left")
    run = Run(on_commit=fails_at(index, error))
    assert run.error is error and not run.left
    assert len(run.tables) == index


def test_an_error_of_the_tokenizer_ends_the_run() -> None:
    run = Run(tokenizer=BrokenTokenizer())
    assert isinstance(run.error, TokenizerBrokeError) and not run.left and run.tables == []


def test_an_error_of_the_task_ends_the_run() -> None:
    run = Run(task=BrokenTask(("L0", "L1"), None, EngineConfig(model="none")))
    assert isinstance(run.error, TaskBrokeError) and not run.left and run.tables == []


@pytest.mark.parametrize("looks", [0, 1, 2, 5, 11, 30])
def test_a_stop_ends_the_run_without_an_error_after_whole_shards(looks: int) -> None:
    run = Run(stop=Stop(AfterLooks(looks)))
    assert run.error is None and not run.left
    assert len(run.tables) < 20
    rows = [row for table in run.tables for row in table.to_pylist()]
    assert predicted(rows) == predictions(TEXTS[: SHARD_ROWS * len(run.tables)])


def test_a_slow_disk_holds_the_reader_back() -> None:
    """A commit ends only when the lanes before it are full, and not even then may more shards be there."""
    changed = threading.Condition()
    read, committed, most = 0, 0, 0

    def on_read(_: int) -> None:
        nonlocal read, most
        with changed:
            read += 1
            most = max(most, read - committed)
            changed.notify_all()

    def on_commit(_: int) -> None:
        nonlocal committed
        with changed:
            full = min(committed + MOST_SHARDS, 20)
            assert changed.wait_for(lambda: read >= full, DEADLINE_S)
            committed += 1

    run = Run(on_read=on_read, on_commit=on_commit)
    assert run.error is None and (read, committed) == (20, 20)
    assert most == MOST_SHARDS


def test_a_channel_gives_what_was_put_in_before_it_was_closed() -> None:
    channel: Channel[int] = Channel(Breaker(), 3)
    for item in (1, 2, 3):
        channel.put(item)
    channel.close()
    assert list(channel) == [1, 2, 3]


def test_a_tripped_breaker_ends_both_sides_of_a_channel_and_keeps_the_first_error() -> None:
    breaker = Breaker()
    channel: Channel[int] = Channel(breaker, 1)
    channel.put(1)
    breaker.trip(ReadError("first"))
    breaker.trip(DiskFullError("second"))
    breaker.trip(LaneStoppedError())
    with pytest.raises(LaneStoppedError):
        channel.put(2)
    with pytest.raises(LaneStoppedError):
        next(iter(channel))
    assert str(breaker.error) == "first"


def test_an_abandoned_channel_takes_and_drops_everything() -> None:
    channel: Channel[int] = Channel(Breaker(), 1)
    channel.put(1)
    channel.abandon()
    for item in range(5):
        channel.put(item)
    channel.close()
    assert list(channel) == []
