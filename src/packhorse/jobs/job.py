"""One job: rows of an input to committed parts of an output, from a new or a begun run folder to a report."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

import pyarrow as pa

from packhorse.config import RunConfig
from packhorse.data import Position, Shard
from packhorse.errors import InterruptedRunError
from packhorse.executors.executor import Executor, Outcome, Stop, beside
from packhorse.executors.local import Local
from packhorse.jobs.accounting import Committer, check_error_rate, estimated_rows, new_report
from packhorse.jobs.beginning import Beginning
from packhorse.jobs.continuing import Reopen, check_can_retry
from packhorse.jobs.dividing import SHARDS, num_to_try, several_if_faster, trial_rows
from packhorse.jobs.mirroring import Mirror, cut_files
from packhorse.jobs.on_ray import on_ray
from packhorse.jobs.retrying import Retry
from packhorse.jobs.spreading import devices_of, freed, shared, spread, started
from packhorse.loading import Loader
from packhorse.metrics import LiveCounters, RunReport, activation_bytes
from packhorse.outputs.manifest import RunFolder
from packhorse.outputs.mirrored import MirroredFolder
from packhorse.outputs.records import Commit
from packhorse.plans import Plan
from packhorse.readers.cut import ShardRows, cut_shards, text_output
from packhorse.remote import notes_on
from packhorse.report.html import render
from packhorse.report.recorder import Recorder
from packhorse.report.reporter import Reporter
from packhorse.selection import read_schema
from packhorse.shard import Budget, Budgets, Stages
from packhorse.stages import Reader, Writer
from packhorse.writers import make_writer

PREVIEW_ROWS = 3
WRITING_SHARD_ROWS = 1_024  # of generation: a row takes as long as hundreds that are only read


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
        reopen: Reopen | None = None,
    ) -> None:
        """reopen: the input with its files in another order; None where it has none."""
        self._config, self._folder, self._reporter, self._stop = config, folder, reporter, stop
        self._begin_s = time.perf_counter()
        self._writer: Writer = make_writer(config.output_extension)
        self._begun = Beginning(config, loader, reader, folder, stop, reopen)
        self._mirror: Mirror | None = None

    def run(self) -> RunReport:
        """Raises a PackhorseError of the fitting class; the run folder can be continued after any of them."""
        self._folder.check_is_ours(self._config.overwrite)
        self._folder.lock(self._reporter.note, self._pause)
        given = self._begun.loader
        try:
            for note in dict.fromkeys([*notes_on(self._config.input), *self._folder.notes]):
                self._reporter.note(note)
            return self._run_locked()
        finally:
            self._folder.unlock()
            if self._begun.loader is not given:  # another backend, for this job alone
                self._begun.loader.drop(self._begun.loader.loaded)

    def _pause(self, seconds: float) -> None:
        """Raises InterruptedRunError where the run is stopped meanwhile."""
        if self._stop.event.wait(seconds):
            raise InterruptedRunError(self._stop.signum, 0)

    def _check_stop(self) -> None:
        self._pause(0)

    def _run_locked(self) -> RunReport:
        if self._config.overwrite or not self._folder.exists:
            check_can_retry(self._config, None)
            self._folder.clear()
            return self._on_devices(self._begun.new_plan)
        manifest = self._begun.continued(self._reporter.note)
        check_can_retry(self._config, manifest)
        if not manifest.get("finished"):
            return self._on_devices(lambda _: self._begun.same_plan(manifest))
        if self._config.retry_errors:
            return self._retried(manifest)
        self._folder.check_finished(manifest)
        return self._already_finished(manifest)

    def _on_devices(self, decide: Callable[[Callable[[Plan], Plan]], Plan]) -> RunReport:
        """In this process where there is one device, else in a process for each. decide: makes the plan, given how
        many processes change it."""
        if self._config.ray is not None:
            return on_ray(self._config, self._begun, decide, self._reporter, self._check_stop, self._compute)
        devices = devices_of(self._config, self._begun.loader)
        plan = decide(lambda plan: shared(plan, len(devices)))
        if len(devices) == 1:
            return self._with_stages(plan, self._here)
        self._reporter.plan(plan, self._config.model)
        self._reporter.note(f"a process each on {', '.join(devices)}")
        with spread(self._config, self._begun, plan, devices, self._reporter.note, self._check_stop) as processes:
            return self._compute(plan, processes)

    def _here(self, plan: Plan, stages: Stages) -> RunReport:
        """In this process, unless several are faster and nobody said how many there are to be."""
        local, loader, say = Local(stages), self._begun.loader, self._reporter.note
        tuned_s = plan.forecast.tuned_s if plan.forecast else 0.0
        setup_s = time.perf_counter() - self._begin_s - tuned_s
        count, why = num_to_try(self._config, loader, plan, local.weight_bytes, setup_s)
        if why:
            say(why)
        if count == 1:
            return self._compute(plan, local)
        shards = list(islice(self._shards(Position(0, 0), 0, 0, trial_rows(plan, count)), SHARDS * count))
        processes = several_if_faster(
            local, lambda: started(self._config, self._begun, plan, ["cpu"] * count, say, self._check_stop), shards,
            self._budgets().at(0), self._stop, say,
        )  # fmt: skip
        if processes is None:
            return self._compute(plan, local)
        with processes:
            freed(self._begun, plan)
            return self._compute(plan, processes)

    def _with_stages(self, plan: Plan, work: Callable[[Plan, Stages], RunReport]) -> RunReport:
        self._begun.loader.replay(plan)
        columns = self._begun.columns
        stages = self._begun.loader.stages(
            plan, columns.keep, self._config.output_prefix, columns.prompts, self._config.seed_column
        )
        self._reporter.plan(plan, self._config.model)
        try:
            return work(plan, stages)
        finally:
            stages.tokenizer.close()

    def _retried(self, manifest: dict[str, Any]) -> RunReport:
        commits = self._folder.commits()
        self._folder.check_parts([c for c in commits if c.shard.index not in self._begun.torn])
        retry = Retry(self._config, self._folder, self._begun.reader, self._begun.columns, self._writer, self._stop)
        failed = retry.failed(commits)
        if not failed:
            self._reporter.note("no row is in error: there is nothing to retry")
            return self._already_finished(manifest)
        self._reporter.note(f"rows that ended in errors, computed again: {sum(map(len, failed.values())):,}")

        def work(plan: Plan, stages: Stages) -> RunReport:
            report = new_report(self._config, self._folder, plan, [])
            report.setup_s = time.perf_counter() - self._begin_s
            live = LiveCounters()
            recorder = Recorder(live, plan.device)
            self._folder.drop_report()
            with recorder.energy, self._reporter.progress(live):
                report.this_run = retry.run(commits, failed, stages, self._budgets(), live, recorder)
                report.wall_s = live.elapsed_s
            self._begun.check_input()
            merged = new_report(self._config, self._folder, plan, self._folder.commits())
            report.counters, report.shards, report.parts = merged.counters, merged.shards, merged.parts
            return self._close(report, plan, Local(stages), recorder)

        return self._with_stages(self._begun.same_plan(manifest), work)

    def _budgets(self) -> Budgets:
        return Budgets([(first, Budget(*rest)) for first, *rest in self._folder.manifest()["budgets"]])

    def _compute(self, plan: Plan, executor: Executor) -> RunReport:
        commits, budgets = self._folder.commits(), self._budgets()
        self._folder.check_parts(commits)
        self._folder.drop_records_after(commits)
        if isinstance(self._folder, MirroredFolder):
            self._mirror = Mirror(self._folder, self._begun.names, self._writer, self._empty_table(executor))
        last = commits[-1].shard if commits else None
        row = last.first_row + last.num_rows if last else 0
        if last is None:
            self._preview(executor, budgets.at(0))
        else:
            self._reporter.note(f"going on after {row:,} rows of an earlier run")
        report = new_report(self._config, self._folder, plan, commits)
        report.setup_s = time.perf_counter() - self._begin_s
        check_error_rate(self._config, report.counters, "in an earlier run")
        live = LiveCounters(done_before=row, by_rows=self._begun.loader.description.writes)
        recorder = Recorder(live, plan.device)
        shards = self._watched(
            self._shards(last.end if last else Position(0, 0), len(commits), row, self._config.shard_rows, executor),
            live,
        )
        committer = Committer(self._config, self._folder, self._writer, report, recorder, self._committed)
        with recorder.energy, self._reporter.progress(live), committer:
            outcome = executor.run(shards, budgets, committer.commit, self._lower_budget, live, self._stop)
            committer.end()
            report.wall_s = live.elapsed_s
        return self._end(report, outcome, plan, executor, recorder)

    def _shards(
        self, start: Position, index: int, row: int, shard_rows: int | None, executor: Executor | None = None
    ) -> Iterator[ShardRows]:
        begun, width = self._begun, executor.width if executor else 1
        chunks, texts = begun.reader.read(start, begun.columns.reads, begun.columns.texts), begun.columns.texts
        of_text = text_output(begun.loader.task.reduction(), width)
        if shard_rows is None and begun.loader.description.writes:
            shard_rows = WRITING_SHARD_ROWS
        if self._config.mirror:
            return cut_files(chunks, start, index, row, texts, shard_rows, 4 * width, of_text)
        return cut_shards(chunks, start, index, row, texts, shard_rows, 4 * width, self._config.limit, of_text)

    def _watched(self, shards: Iterator[ShardRows], live: LiveCounters) -> Iterator[ShardRows]:
        """Keeps the estimate of the job's rows up to date."""
        for rows in shards:
            share = self._begun.reader.progress(rows.shard.end)
            live.total_rows = estimated_rows(rows.shard, self._begun.reader.num_rows(), share, self._config.limit)
            yield rows

    def _preview(self, executor: Executor, budget: Budget) -> None:
        """The first rows' predictions, so that a wrong column or model is seen before the long part."""
        first = next(self._shards(Position(0, 0), 0, 0, PREVIEW_ROWS), None)
        if first is None:
            return
        texts = executor.texts(first)
        if self._begun.loader.description.writes:  # their outputs may take minutes
            self._reporter.prompts(texts)
        else:
            self._reporter.preview(texts, executor.predict(first, budget))

    def _committed(self, commit: Commit) -> None:
        if self._mirror is not None:
            self._mirror.committed(commit)

    def _lower_budget(self, shard: int, budget: Budget) -> None:
        """Written before the shard is computed again, so that a resumed run does as this one did."""
        manifest = self._folder.manifest()
        manifest["budgets"].append([shard, budget.max_batch_tokens, budget.batch_size])
        self._folder.write_manifest(manifest)
        self._reporter.note(f"out of memory: going on with {budget.max_batch_tokens:,} tokens a batch")

    def _end(
        self, report: RunReport, outcome: Outcome, plan: Plan, executor: Executor, recorder: Recorder
    ) -> RunReport:
        report.this_run, report.workers = outcome.counters, outcome.workers
        report.wait_input_s, report.wait_output_s = outcome.wait_input_s, outcome.wait_output_s
        if self._stop.event.is_set():
            raise InterruptedRunError(self._stop.signum, report.rows)
        self._begun.check_input()
        if self._mirror is not None:
            self._mirror.end()
        elif not report.shards:
            self._commit_empty(report, executor)
        commits = self._folder.commits()
        report.sha256 = self._folder.finish(report.rows, commits, self._writer.assemble)
        report.parts = self._folder.shown(commits)
        return self._close(report, plan, executor, recorder)

    def _close(self, report: RunReport, plan: Plan, executor: Executor, recorder: Recorder) -> RunReport:
        """The report of a finished run, written and shown."""
        report.peak_bytes, report.device_peak_bytes = executor.peak_bytes, executor.device_peak_bytes
        if report.this_run.flops:
            loader, about = self._begun.loader, self._begun.loader.description
            report.gemm_flops_per_s = loader.gemm(plan.precision, report.flops_per_s)
            report.ceilings, report.weight_bytes = loader.ceilings(plan.precision), executor.weight_bytes
            report.activation_bytes_per_token = activation_bytes(
                about.num_layers, about.attention_width, plan.precision
            )
        report.status = "finished"
        recorder.fill(report)
        self._write_report(report.to_dict())
        self._reporter.summary(report)
        return report

    def _write_report(self, report: dict[str, Any]) -> None:
        self._folder.write_report(report, render(report))

    def _commit_empty(self, report: RunReport, executor: Executor) -> None:
        """An input without rows gives an output without rows that still has its columns."""
        table, shard = self._empty_table(executor), Shard(0, 0, 0, Position(0, 0), Position(0, 0))
        self._folder.commit(shard, self._writer.extension, lambda paths: self._writer.write(table, paths), {})
        report.shards += 1

    def _empty_table(self, executor: Executor) -> pa.Table:
        rows = read_schema(self._begun.reader, self._begun.columns).empty_table()
        return beside(rows.select(self._begun.columns.keep), executor.predict(ShardRows.of(rows, {}), Budget(1, 1)))

    def _already_finished(self, manifest: dict[str, Any]) -> RunReport:
        report = new_report(self._config, self._folder, Plan(**manifest["plan"]), self._folder.commits())
        report.setup_s = time.perf_counter() - self._begin_s
        report.status, report.sha256 = "already_finished", manifest.get("sha256")
        if not self._folder.has_report:  # the run that finished was stopped before it could write one
            self._write_report(report.to_dict() | self._folder.report())
        self._reporter.summary(report)
        return report
