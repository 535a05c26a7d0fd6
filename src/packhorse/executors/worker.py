"""The work of a worker process: shards that the coordinator hands it, through the lanes that one process has.

To the worker: load, texts, predict, run, shard, budgets, stop, end, close. From it: ready, answer, progress,
out_of_memory, done, ended, failed.
"""

from __future__ import annotations

import os
import pickle
import queue
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pyarrow as pa

from packhorse.data import RowError, Shard
from packhorse.devices.host import rss_peak_bytes
from packhorse.executors.executor import Done, Stop
from packhorse.executors.lanes import Breaker, LaneStoppedError
from packhorse.executors.local import Local, run_shards
from packhorse.executors.wire import Message, Wire, WireClosedError
from packhorse.metrics import Counters, LiveCounters
from packhorse.readers.cut import ShardRows
from packhorse.shard import Budget, Budgets, Stages

PROGRESS_EVERY_S = 0.2
LOOK_EVERY_S = 0.1
ORPHANED = 75  # exit code, EX_TEMPFAIL of sysexits.h: the coordinator is gone

Entries = list[tuple[int, Budget]]


class Facts(NamedTuple):
    """Of a model that was loaded."""

    width: int
    weight_bytes: int


class Handed(NamedTuple):
    """A shard as it is handed over; its columns are those that the model needs."""

    shard: Shard
    errors: dict[int, RowError]


class Computed(NamedTuple):
    """A shard that comes back, beside its columns. budget: what its batches were allowed."""

    shard: Shard
    errors: dict[int, RowError]
    counters: Counters
    budget: Budget


class Ended(NamedTuple):
    wait_input_s: float
    wait_output_s: float
    peak_bytes: int
    device_peak_bytes: int | None


class AgreedBudgets(Budgets):
    """Those that the coordinator tells: it decides, for all workers and in the manifest, and `lower` waits for that."""

    def __init__(self, wire: Wire) -> None:
        super().__init__([])
        self._wire, self._told = wire, threading.Condition()
        self.used: dict[int, Budget] = {}  # by shard: what it was looked up for last

    def replace(self, entries: Entries) -> None:
        with self._told:
            self._entries = entries
            self._told.notify_all()

    def at(self, shard: int) -> Budget:
        self.used[shard] = super().at(shard)
        return self.used[shard]

    def lower(self, shard: int) -> Budget:
        before = self.used[shard]
        self._wire.send("out_of_memory", (shard, before))
        with self._told:
            self._told.wait_for(lambda: super(AgreedBudgets, self).at(shard) != before)
        return self.at(shard)


class RelayedCounters(LiveCounters):
    """Told to the coordinator now and then, as totals of this process."""

    def __init__(self, wire: Wire) -> None:
        super().__init__()
        self._wire, self._told_s = wire, 0.0

    def add_batch(self, rows: int, real_tokens: int, computed_tokens: int) -> None:
        super().add_batch(rows, real_tokens, computed_tokens)
        if time.perf_counter() - self._told_s > PROGRESS_EVERY_S:
            self.tell()

    def tell(self) -> None:
        self._told_s = time.perf_counter()
        self._wire.send("progress", (*self.snapshot(), self.planned_rows, self.planned_tokens))


class Inbox:
    """What the coordinator sends, received by a thread of its own: where the coordinator ends, however it ends, this
    process ends at once."""

    def __init__(self, wire: Wire) -> None:
        self.messages: queue.SimpleQueue[Message] = queue.SimpleQueue()
        self.budgets, self.stop = AgreedBudgets(wire), Stop()
        self._wire = wire
        threading.Thread(target=self._receive, name="inbox", daemon=True).start()

    def _receive(self) -> None:
        try:
            while True:
                self._sort(self._wire.receive())
        except WireClosedError:
            os._exit(ORPHANED)
        except BaseException:  # noqa: BLE001 - a process that hears nothing any more is of no use
            traceback.print_exc()
            os._exit(1)

    def _sort(self, message: Message | None) -> None:
        assert message is not None
        if message.kind == "budgets":
            self.budgets.replace(message.values)
            return
        if message.kind == "stop":
            self.stop.event.set()
        self.messages.put(message)


def serve(wire: Wire, inbox: Inbox, load: Callable[[Any], Stages]) -> None:
    """Until the coordinator says close; what is raised goes to it. load: stages of what it says first."""
    try:
        stages = load(inbox.messages.get().values)
        local = Local(stages)
        wire.send("ready", Facts(local.width, local.weight_bytes))
        while (message := inbox.messages.get()).kind != "close":
            if message.kind == "run":
                _run(wire, inbox, stages)
            elif message.kind in ("texts", "predict"):
                wire.send("answer", *_answer(message, local))
        stages.tokenizer.close()
        stages.model.close()
    except WireClosedError:
        os._exit(ORPHANED)
    except BaseException as error:  # noqa: BLE001 - raised by the coordinator
        wire.send("failed", *_told(error))


def _answer(message: Message, local: Local) -> tuple[Any, pa.Table | None]:
    (handed, budget), rows = message.values, message.table
    shard_rows = ShardRows(handed.shard, rows, handed.errors)
    if message.kind == "texts":
        return local.texts(shard_rows), None
    return None, local.predict(shard_rows, budget)


def _run(wire: Wire, inbox: Inbox, stages: Stages) -> None:
    breaker, live, budgets = Breaker(), RelayedCounters(wire), inbox.budgets

    def commit(done: Done, table: pa.Table) -> None:
        live.tell()
        values = Computed(done.shard, done.errors, done.counters, budgets.used.pop(done.shard.index))
        wire.send("done", values, table)

    outcome = run_shards(_shards(inbox, breaker), stages, budgets, commit, lambda *_: None, live, inbox.stop, breaker)
    ended = Ended(outcome.wait_input_s, outcome.wait_output_s, rss_peak_bytes(), stages.model.peak_bytes())
    wire.send("ended", ended)


def _shards(inbox: Inbox, breaker: Breaker) -> Iterator[ShardRows]:
    """Until the coordinator says that there are no more; where another lane failed, the next look ends it."""
    while True:
        try:
            message = inbox.messages.get(timeout=LOOK_EVERY_S)
        except queue.Empty:
            if breaker.error is not None:
                raise LaneStoppedError from None
            continue
        if message.kind != "shard":
            return
        handed = message.values
        yield ShardRows(handed.shard, message.table, handed.errors)


def _told(error: BaseException) -> tuple[tuple[BaseException, str], None]:
    """The error itself where it can be sent, and where it was raised."""
    where = "".join(traceback.format_exception(error))
    try:
        sent = type(pickle.loads(pickle.dumps(error)))
    except Exception:  # noqa: BLE001 - an exception's arguments may be anything
        sent = None
    if sent is not type(error) or not isinstance(error, Exception):
        error = RuntimeError(f"{type(error).__name__}: {error}")
    return (error, where), None
