"""What a row costs the processor in each stage: one shard after the other, process_time() around each, so that the
tokenizer's own threads count. The cost of a device is not in it: the null backend only sums up tokens."""

from __future__ import annotations

import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

from packhorse.data import Position
from packhorse.loading import Loader
from packhorse.outputs.manifest import RunFolder
from packhorse.plans import Plan
from packhorse.readers.cut import ShardRows, cut_shards
from packhorse.sequences import Tokenized
from packhorse.shard import Budget, Stages, finish, forward, prepare
from packhorse.stages import Reader, Tokenizer
from packhorse.writers import make_writer

RAMP_SHARDS = 3  # not counted
BUDGET = Budget(16_384, None)


class Spent:
    """Seconds of processor time by stage; a stage within another is taken out of that."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self._inner_s = 0.0

    @contextmanager
    def on(self, stage: str) -> Iterator[None]:
        outer_s, self._inner_s = self._inner_s, 0.0
        begin = time.process_time()
        yield
        took_s = time.process_time() - begin
        self.seconds[stage] += took_s - self._inner_s
        self._inner_s = outer_s + took_s


class TimedTokenizer:
    def __init__(self, tokenizer: Tokenizer, spent: Spent) -> None:
        self._tokenizer, self._spent = tokenizer, spent

    def tokenize(self, texts: Sequence[str | None], pairs: Sequence[str | None] | None) -> Tokenized:
        with self._spent.on("tokenize"):
            return self._tokenizer.tokenize(texts, pairs)

    def close(self) -> None:
        self._tokenizer.close()


def stage_costs(reader: Reader, loader: Loader, plan: Plan, num_rows: int) -> dict[str, float]:
    """Nanoseconds a row by stage. The plan: as a run over the same rows decided it."""
    spent, counted = Spent(), 0
    start = Position(0, 0)
    shards = cut_shards(reader.read(start, [], ["text"]), start, 0, 0, ["text"], None, 8, num_rows)
    with tempfile.TemporaryDirectory() as scratch:
        folder = RunFolder(f"{scratch}/out", is_file=False)
        made = loader.stages(plan, keep=[])
        stages = replace(made, tokenizer=TimedTokenizer(made.tokenizer, spent))
        while True:
            with spent.on("read and cut"):
                rows = next(shards, None)
            if rows is None:
                break
            _one_shard(rows, stages, folder, spent)
            counted += rows.shard.num_rows
            if rows.shard.index == RAMP_SHARDS - 1:
                spent.seconds.clear()
                counted = 0
        stages.tokenizer.close()
    return {stage: round(1e9 * seconds / max(counted, 1), 1) for stage, seconds in spent.seconds.items()}


def _one_shard(rows: ShardRows, stages: Stages, folder: RunFolder, spent: Spent) -> None:
    writer = make_writer(".parquet")
    with spent.on("texts, dedup, plan"):
        prepared = prepare(rows, stages, BUDGET)
    with spent.on("batches and null backend"):
        forwarded = forward(prepared, stages, BUDGET, lambda *_: None)
    with spent.on("finish"):
        table = finish(forwarded, stages)

    def write(paths: list[str]) -> None:
        with spent.on("write Parquet"):
            writer.write(table, paths)

    with spent.on("hash, publish, record"):
        folder.commit(rows.shard, writer.extension, write, forwarded.counters.deterministic())
