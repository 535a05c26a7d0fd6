"""--retry-errors: the rows in error of a finished output computed again, each in its place."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from packhorse.config import RunConfig
from packhorse.data import Int64s, RowError
from packhorse.errors import ChangedError, DeviceOutOfMemoryError, InterruptedRunError, UsageError
from packhorse.executors.local import Stop
from packhorse.jobs.accounting import check_no_error
from packhorse.metrics import Counters, LiveCounters
from packhorse.outputs.manifest import RunFolder
from packhorse.outputs.records import Commit
from packhorse.outputs.retries import Retries
from packhorse.readers.cut import ShardRows
from packhorse.report.recorder import Recorder
from packhorse.selection import Columns
from packhorse.shard import Budget, Budgets, Forwarded, Stages, finish, forward, prepare
from packhorse.stages import OnBatch, Reader, Writer


@dataclass(frozen=True, slots=True)
class Retry:
    """The stages are those of the job that wrote the output."""

    config: RunConfig
    folder: RunFolder
    reader: Reader
    columns: Columns
    writer: Writer
    stop: Stop

    def failed(self, commits: Sequence[Commit]) -> dict[int, Int64s]:
        """Rows in error by shard, for those that have any. Raises UsageError where nothing tells which they are."""
        return {c.shard.index: self._rows_in_error(c) for c in commits if sum(c.counters.get("errors", {}).values())}

    def run(
        self, commits: Sequence[Commit], failed: dict[int, Int64s], stages: Stages, budgets: Budgets,
        live: LiveCounters, recorder: Recorder,
    ) -> Counters:  # fmt: skip
        """What was computed. A shard none of whose rows is better off keeps its part. Raises InterruptedRunError
        between two batches."""
        total, retries, num_rows = Counters(), Retries(self.folder), sum(c.shard.num_rows for c in commits)
        live.total_rows = sum(map(len, failed.values()))
        for index, rows in failed.items():
            commit = commits[index]
            done, table = self._computed(self._read(commit, rows), stages, budgets.at(index), live, num_rows)
            errors = {int(rows[i]): error for i, error in done.errors.items()}
            check_no_error(self.config, commit.shard.first_row, errors)
            with done.counters.timed("write_s"):
                self._merge(retries, commit, rows, table, done, errors)
            recorder.committed(len(rows), commit.shard.first_row, errors)
            total += done.counters
        return total

    def _computed(
        self, rows: ShardRows, stages: Stages, budget: Budget, live: LiveCounters, num_rows: int
    ) -> tuple[Forwarded, pa.Table]:
        prepared = prepare(rows, stages, budget)
        live.planned(rows.shard.num_rows, prepared.counters.real_tokens)
        while True:
            before = live.snapshot()
            try:
                done = forward(prepared, stages, budget, self._on_batch(live, num_rows))
                return done, finish(done, stages)
            except DeviceOutOfMemoryError:
                live.restore(before)
                budget = budget.halved()

    def _on_batch(self, live: LiveCounters, num_rows: int) -> OnBatch:
        """num_rows: of the output, all of them committed, with an error or without."""

        def on_batch(rows: int, real_tokens: int, computed_tokens: int) -> None:
            live.add_batch(rows, real_tokens, computed_tokens)
            if self.stop.event.is_set():
                raise InterruptedRunError(self.stop.signum, num_rows)

        return on_batch

    def _merge(
        self, retries: Retries, old: Commit, rows: Int64s, table: pa.Table, done: Forwarded, errors: dict[int, RowError]
    ) -> None:
        is_torn = old.shard.index in retries.pending()
        if done.counters.errors == old.counters["errors"] and not is_torn:
            return
        retries.replace(
            old,
            self.writer.extension,
            lambda part, paths: self.writer.merge(part, rows.tolist(), table, paths),
            _counters(old, done.counters),
            tuple(sorted(errors)),
        )

    # -- the rows

    def _read(self, commit: Commit, rows: Int64s) -> ShardRows:
        """Only the rows of those numbers. Raises ChangedError where the input has fewer than the shard had."""
        pieces: list[pa.Table] = []
        errors: dict[int, RowError] = {}
        seen = found = 0
        for table, chunk_errors in self._pieces(commit):
            picked = rows[(rows >= seen) & (rows < seen + table.num_rows)] - seen
            pieces.append(table.take(picked))
            errors |= {found + i: chunk_errors[at] for i, at in enumerate(picked.tolist()) if at in chunk_errors}
            seen, found = seen + table.num_rows, found + len(picked)
        if seen != commit.shard.num_rows:
            raise ChangedError(f"{self.config.input}: shard {commit.shard.index} has {seen} rows now; --overwrite anew")
        return ShardRows(replace(commit.shard, num_rows=found), pa.concat_tables(pieces), errors, rows)

    def _pieces(self, commit: Commit) -> Iterator[tuple[pa.Table, dict[int, RowError]]]:
        left = commit.shard.num_rows
        for chunk in self.reader.read(commit.shard.start, self.columns.reads, self.columns.texts):
            table = chunk.table.slice(0, left)
            yield table, dict(chunk.errors)
            left -= table.num_rows
            if not left:
                return

    def _rows_in_error(self, commit: Commit) -> Int64s:
        if len(commit.error_rows) == sum(commit.counters["errors"].values()):
            return np.array(commit.error_rows, np.int64)
        if not commit.part.endswith(".parquet"):
            raise UsageError(
                f"--retry-errors: an older version wrote {self.folder.root}, which did not note the rows in error of "
                f"{self.writer.extension[1:]} parts; --overwrite computes all rows anew"
            )
        name = f"{self.config.output_prefix}error"
        with self.folder.store.on_disk([self.folder.part(commit.files[0])]) as (path,):
            column = pq.read_table(path, columns=[name])[name]
        return np.flatnonzero(column.is_valid().to_numpy()).astype(np.int64)


def _counters(old: Commit, done: Counters) -> dict[str, object]:
    """Of the shard with its new rows: those of its texts stay, computing adds up, errors are those that are left."""
    merged = Counters(**old.counters)
    merged += Counters(
        batches=done.batches, computed_tokens=done.computed_tokens, length_computed=done.length_computed,
        generated_tokens=done.generated_tokens, near_ties=done.near_ties,
        notes=done.notes,
    )  # fmt: skip
    merged.transferred(done.transfers)
    merged.errors = dict(done.errors)
    return merged.deterministic()
