"""What a job counts: the report that it begins with, each commit, and the limit on rows in error."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import pyarrow as pa

from packhorse.config import RunConfig
from packhorse.data import RowError, Shard
from packhorse.errors import RowFailedError, TooManyErrorsError
from packhorse.executors.executor import Done
from packhorse.metrics import Counters, RunReport
from packhorse.outputs.committing import Committing
from packhorse.outputs.manifest import RunFolder
from packhorse.outputs.records import Commit
from packhorse.plans import Plan
from packhorse.redaction import redacted
from packhorse.report.recorder import Recorder
from packhorse.stages import Writer

MIN_ROWS_FOR_RATE = 1_000  # --max-error-rate is looked at from here on


class _Counted(NamedTuple):
    """What is left of a shard once it is written: a Done without its rows."""

    shard: Shard
    errors: dict[int, RowError]
    counters: Counters


class Committer(Committing):
    """Commits computed shards, and counts each once it is final."""

    def __init__(
        self, config: RunConfig, folder: RunFolder, writer: Writer, report: RunReport, recorder: Recorder,
        then: Callable[[Commit], None],
    ) -> None:  # fmt: skip
        """then: told of each commit, in order."""
        super().__init__(folder)
        self._config, self._writer, self._report = config, writer, report
        self._recorder, self._told = recorder, then

    def commit(self, done: Done, table: pa.Table) -> None:
        """Raises RowFailedError, TooManyErrorsError and what the store raises, of this shard or of an earlier one."""
        check_no_error(self._config, done.shard.first_row, done.errors)
        commit, temporaries = self._folder.written(
            done.shard,
            self._writer.extension,
            lambda paths: self._writer.write(table, paths),
            done.counters.deterministic(),
            sorted(done.errors),
        )
        counted = _Counted(done.shard, done.errors, done.counters)
        self.add(commit, temporaries, lambda: self._count(counted, commit))

    def _count(self, done: _Counted, commit: Commit) -> None:
        self._report.counters += done.counters
        self._report.shards += 1
        self._told(commit)
        self._recorder.committed(done.shard.num_rows, done.shard.first_row, done.errors)
        check_error_rate(self._config, self._report.counters, first_error(done))


def new_report(config: RunConfig, folder: RunFolder, plan: Plan, commits: Sequence[Commit]) -> RunReport:
    """Of what earlier processes committed."""
    counters = Counters()
    for commit in commits:
        counters += Counters(**commit.counters)
    return RunReport(
        output=config.output,
        status="running",
        plan=plan.model_dump(mode="json"),
        counters=counters,
        this_run=Counters(),
        shards=len(commits),
        parts=folder.shown(commits),
        model=config.model,
        input=redacted(config.input),
        price_per_hour=config.price_per_hour,
        html_path=folder.html_path,
    )


def check_no_error(config: RunConfig, row: int, errors: dict[int, RowError]) -> None:
    """Raises RowFailedError under --on-error fail. errors: by place, counted from that row of the input on."""
    if errors and config.on_error == "fail":
        at, error = next(iter(errors.items()))
        raise RowFailedError(f"row {row + at}: {error.kind}: {error.message} (--on-error quarantine goes on)")


def check_error_rate(config: RunConfig, counters: Counters, first: str) -> None:
    """Raises TooManyErrorsError; first: an example of an error."""
    limit = config.max_error_rate
    if counters.rows < MIN_ROWS_FOR_RATE or counters.error_rows <= limit * counters.rows:
        return
    kinds = ", ".join(f"{n:,} {kind}" for kind, n in sorted(counters.errors.items()))
    raise TooManyErrorsError(
        f"{counters.error_rows:,} of {counters.rows:,} rows ended in errors ({kinds}), more than --max-error-rate "
        f"{limit} allows; the first: {first}. The rows done so far are committed"
    )


def first_error(done: _Counted) -> str:
    at, error = next(iter(done.errors.items()), (0, None))
    return f"row {done.shard.first_row + at}, {error.kind}: {error.message}" if error else "in an earlier shard"


def estimated_rows(shard: Shard, known: int | None, progress: float, limit: int | None) -> float:
    """Rows of the whole job: known where the input tells, else from the share of it (0 to 1) that ends with the
    shard."""
    total = known if known is not None else (shard.first_row + shard.num_rows) / max(progress, 1e-9)
    return total if limit is None else min(total, limit)
