"""One job: rows of an input to committed parts of an output, from a new or a begun run folder to a report."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from packhorse.config import RunConfig
from packhorse.data import Position, Shard
from packhorse.devices.host import rss_peak_bytes
from packhorse.errors import ChangedError, InterruptedRunError, RowFailedError, TooManyErrorsError
from packhorse.executors.local import Outcome, Stop, run_shards
from packhorse.loading import Loader
from packhorse.loading.choosing import Texts, choose
from packhorse.loading.replaying import replayed
from packhorse.manifest import Commit, RunFolder, check_unchanged
from packhorse.metrics import Counters, LiveCounters, RunReport, activation_bytes
from packhorse.plans import Plan
from packhorse.readers.columns import column_texts
from packhorse.readers.cut import ShardRows, cut_shards
from packhorse.readers.sample import take_sample
from packhorse.report.html import render
from packhorse.report.recorder import Recorder
from packhorse.report.reporter import Reporter
from packhorse.selection import check_apart, choose_columns, read_schema
from packhorse.shard import Budget, Budgets, Forwarded, Stages, predict
from packhorse.stages import Reader, Writer
from packhorse.writers import make_writer

MIN_ROWS_FOR_RATE = 1_000  # --max-error-rate is looked at from here on
PREVIEW_ROWS = 3


class Job:
    """`run()` does it all; an object so that its steps share what was decided."""

    def __init__(
        self,
        config: RunConfig,
        loader: Loader,
        reader: Reader,
        folder: RunFolder,
        reporter: Reporter,
        stop: Stop,
    ) -> None:
        self._config, self._loader, self._reader = config, loader, reader
        self._reporter, self._stop = reporter, stop
        self._begin = time.perf_counter()
        self._fingerprint = reader.fingerprint()
        self._columns = choose_columns(config, loader.task, reader)
        self._writer: Writer = make_writer(Path(config.output).suffix if config.output_is_file else ".parquet")
        self._folder = folder
        check_apart(self._folder, reader, config.input)

    def run(self) -> RunReport:
        """Raises a PackhorseError of the fitting class; the run folder can be continued after any of them."""
        self._folder.check_is_ours(self._config.overwrite)
        self._folder.lock()
        given = self._loader
        try:
            return self._run_locked()
        finally:
            self._folder.unlock()
            if self._loader is not given:  # another backend, for this job alone
                self._loader.drop(self._loader.loaded)

    def _run_locked(self) -> RunReport:
        identity = {
            "settings": self._config.settings(),
            "input": self._fingerprint,
            "model": self._loader.material.identity(),
        }
        if self._config.overwrite or not self._folder.exists:
            self._folder.clear()
            plan = self._new_plan(identity)
        else:
            manifest = self._folder.manifest()
            check_unchanged(manifest, identity)
            if manifest.get("finished"):
                self._folder.check_finished(manifest)
                return self._already_finished(manifest)
            plan = Plan(**manifest["plan"])
            self._loader = self._loader.sibling(plan.backend)
            check_unchanged(manifest["plan"], {"versions": self._loader.versions()})
            self._see_rows()
        self._loader.replay(plan)
        stages = self._loader.stages(plan, self._columns.keep, self._config.output_prefix)
        self._reporter.plan(plan, self._config.model)
        try:
            return self._compute(plan, stages, self._folder.commits())
        finally:
            stages.tokenizer.close()

    def _see_rows(self) -> float:
        """Shows the loader rows of the input; estimated rows of the job."""
        sample = take_sample(self._reader, self._columns.texts, self._config.limit)
        self._loader.see(sample.texts[0], sample.pairs, sample.is_whole)
        return sample.total_rows

    def _new_plan(self, identity: dict[str, Any]) -> Plan:
        """Decides the plan and writes the manifest, before the first shard."""
        texts = Texts(self._columns.text, self._columns.pair)
        total_rows, asked = self._see_rows(), self._config.plan
        self._loader, plan = (
            replayed(self._loader, asked, texts)
            if asked
            else choose(self._loader, total_rows, texts, clock=self._clock)
        )
        manifest = {
            **identity,
            "plan": plan.model_dump(mode="json"),
            "budgets": [[0, plan.max_batch_tokens, plan.batch_size]],
            "finished": False,
        }
        self._folder.write_manifest(manifest)
        return plan

    def _clock(self) -> float:
        """Read between the batches of trials, so that a stop is seen there too."""
        if self._stop.event.is_set():
            raise InterruptedRunError(self._stop.signum, 0)
        return time.perf_counter()

    def _compute(self, plan: Plan, stages: Stages, commits: list[Commit]) -> RunReport:
        self._folder.check_parts(commits)
        last = commits[-1].shard if commits else None
        row = last.first_row + last.num_rows if last else 0
        budgets = Budgets([(first, Budget(*rest)) for first, *rest in self._folder.manifest()["budgets"]])
        if last is None:
            self._preview(stages, budgets.at(0))
        else:
            self._reporter.note(f"going on after {row:,} rows of an earlier run")
        report = self._new_report(plan, commits)
        self._check_error_rate(report.counters, "in an earlier run")
        live = LiveCounters(done_before=row)
        recorder = Recorder(live, plan.device)
        shards = self._watched(
            self._shards(last.end if last else Position(0, 0), len(commits), row, self._config.shard_rows, stages),
            live,
        )
        with recorder.energy, self._reporter.progress(live):
            outcome = run_shards(
                shards,
                stages,
                budgets,
                lambda done, table: self._commit(done, table, report, recorder),
                self._lower_budget,
                live,
                self._stop,
            )
            report.wall_s = live.elapsed_s
        return self._end(report, outcome, plan, stages, recorder)

    def _shards(
        self, start: Position, index: int, row: int, shard_rows: int | None, stages: Stages | None = None
    ) -> Iterator[ShardRows]:
        chunks = self._reader.read(start, self._columns.keep, self._columns.texts)
        width = stages.model.reduction.width if stages else 1
        return cut_shards(chunks, start, index, row, self._columns.texts, shard_rows, 4 * width, self._config.limit)

    def _watched(self, shards: Iterator[ShardRows], live: LiveCounters) -> Iterator[ShardRows]:
        """Keeps the estimate of the job's rows up to date."""
        for rows in shards:
            live.total_rows = self._estimated_rows(rows.shard)
            yield rows

    def _estimated_rows(self, shard: Shard) -> float:
        """Rows of the whole job: counted where the input tells, else from the share of it that ends with the shard."""
        known = self._reader.num_rows()
        done = shard.first_row + shard.num_rows
        total = known if known is not None else done / max(self._reader.progress(shard.end), 1e-9)
        return total if self._config.limit is None else min(total, self._config.limit)

    def _preview(self, stages: Stages, budget: Budget) -> None:
        """The first rows' predictions, so that a wrong column or model is seen before the long part."""
        first = next(self._shards(Position(0, 0), 0, 0, PREVIEW_ROWS), None)
        if first is not None:
            texts = column_texts(first.table[self._columns.text], first.errors)
            self._reporter.preview(texts, predict(first, dataclasses.replace(stages, keep=[]), budget))

    def _commit(self, done: Forwarded, table: pa.Table, report: RunReport, recorder: Recorder) -> None:
        if done.errors and self._config.on_error == "fail":
            at, error = next(iter(done.errors.items()))
            raise RowFailedError(
                f"row {done.shard.first_row + at}: {error.kind}: {error.message} (--on-error quarantine goes on)"
            )
        commit = self._folder.commit(
            done.shard,
            self._writer.extension,
            lambda path: self._writer.write(table, path),
            done.counters.deterministic(),
        )
        report.counters += done.counters
        report.parts.append(commit.part)
        report.shards += 1
        recorder.committed(done.shard.num_rows, done.shard.first_row, done.errors)
        self._check_error_rate(report.counters, _first_error(done))

    def _check_error_rate(self, counters: Counters, first: str) -> None:
        limit = self._config.max_error_rate
        if counters.rows < MIN_ROWS_FOR_RATE or counters.error_rows <= limit * counters.rows:
            return
        kinds = ", ".join(f"{n:,} {kind}" for kind, n in sorted(counters.errors.items()))
        raise TooManyErrorsError(
            f"{counters.error_rows:,} of {counters.rows:,} rows ended in errors ({kinds}), more than --max-error-rate "
            f"{limit} allows; the first: {first}. The rows done so far are committed"
        )

    def _lower_budget(self, shard: int, budget: Budget) -> None:
        """Written before the shard is computed again, so that a resumed run does as this one did."""
        manifest = self._folder.manifest()
        manifest["budgets"].append([shard, budget.max_batch_tokens, budget.batch_size])
        self._folder.write_manifest(manifest)
        self._reporter.note(f"out of memory: going on with {budget.max_batch_tokens:,} tokens a batch")

    def _new_report(self, plan: Plan, commits: list[Commit]) -> RunReport:
        counters = Counters()
        for commit in commits:
            counters += Counters(**commit.counters)
        return RunReport(
            output=self._config.output,
            status="running",
            plan=plan.model_dump(mode="json"),
            counters=counters,
            this_run=Counters(),
            setup_s=time.perf_counter() - self._begin,
            shards=len(commits),
            parts=[c.part for c in commits],
            model=self._config.model,
            input=self._config.input,
            price_per_hour=self._config.price_per_hour,
            html_path=str(self._folder.html_path),
        )

    def _end(self, report: RunReport, outcome: Outcome, plan: Plan, stages: Stages, recorder: Recorder) -> RunReport:
        report.this_run = outcome.counters
        report.wait_input_s, report.wait_output_s = outcome.wait_input_s, outcome.wait_output_s
        report.peak_bytes, report.device_peak_bytes = rss_peak_bytes(), stages.model.peak_bytes()
        if self._stop.event.is_set():
            raise InterruptedRunError(self._stop.signum, report.rows)
        if not report.parts:
            self._commit_empty(report, stages)
        if self._reader.fingerprint() != self._fingerprint:
            raise ChangedError(f"{self._config.input} changed while it was read; --overwrite starts anew")
        if report.this_run.flops:
            report.gemm_flops_per_s = self._loader.gemm(plan.precision, report.flops_per_s)
            report.ceilings, report.weight_bytes = self._loader.ceilings(plan.precision), stages.model.weight_bytes
            about = self._loader.description
            report.activation_bytes_per_token = activation_bytes(
                about.num_layers, about.attention_width, plan.precision
            )
        report.status = "finished"
        report.sha256 = self._folder.finish(
            report.rows, self._folder.commits(), self._writer.extension, self._writer.assemble
        )
        recorder.fill(report)
        self._write_report(report.to_dict())
        self._reporter.summary(report)
        return report

    def _write_report(self, report: dict[str, Any]) -> None:
        self._folder.write_report(report, render(report))

    def _commit_empty(self, report: RunReport, stages: Stages) -> None:
        """An input without rows gives an output without rows that still has its columns."""
        rows = ShardRows.of(read_schema(self._reader, self._columns).empty_table(), {})
        table = predict(rows, stages, Budget(1, 1))
        commit = self._folder.commit(
            rows.shard, self._writer.extension, lambda path: self._writer.write(table, path), {}
        )
        report.parts.append(commit.part)
        report.shards += 1

    def _already_finished(self, manifest: dict[str, Any]) -> RunReport:
        report = self._new_report(Plan(**manifest["plan"]), self._folder.commits())
        report.status, report.sha256 = "already_finished", manifest.get("sha256")
        if not self._folder.has_report:  # the run that finished was stopped before it could write one
            self._write_report(report.to_dict() | self._folder.report())
        self._reporter.summary(report)
        return report


def _first_error(done: Forwarded) -> str:
    at, error = next(iter(done.errors.items()), (0, None))
    return f"row {done.shard.first_row + at}, {error.kind}: {error.message}" if error else "in an earlier shard"
