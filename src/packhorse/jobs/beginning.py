"""What a run begins with: the input and its columns, and the plan, decided now or by the run that is gone on with."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import datetime
from typing import Any

from packhorse.config import RunConfig
from packhorse.errors import ChangedError, DamagedError, InterruptedRunError
from packhorse.executors.local import Stop
from packhorse.jobs.continuing import Reopen, check_can_grow, continued
from packhorse.jobs.mirroring import output_names
from packhorse.loading import Loader
from packhorse.loading.choosing import Texts, choose
from packhorse.loading.replaying import replayed
from packhorse.models.find import check_same_commit
from packhorse.outputs.manifest import RunFolder
from packhorse.outputs.records import check_unchanged
from packhorse.outputs.retries import Retries
from packhorse.plans import Plan
from packhorse.readers.sample import Sample
from packhorse.selection import check_apart, choose_columns, sample_of
from packhorse.stages import Reader
from packhorse.writers import make_writer


class Beginning:
    """reader, columns and loader are those of the job: going on can change them. torn: shards whose part a stopped
    --retry-errors left half old and half new. names: with --mirror the output of each input file. sample: rows that the
    loader was shown, once there is a plan."""

    sample: Sample

    def __init__(
        self, config: RunConfig, loader: Loader, reader: Reader, folder: RunFolder, stop: Stop, reopen: Reopen | None
    ) -> None:
        """Raises UsageError, and InputError where a file cannot be read."""
        self.loader = loader
        self.torn: list[int] = []
        self.names: list[str] = []
        self._config, self._folder, self._stop, self._reopen = config, folder, stop, reopen
        check_can_grow(config)
        self._take(reader)

    def _take(self, reader: Reader, now: datetime | None = None) -> None:
        self.reader, self._fingerprint = reader, reader.fingerprint()
        self.columns = choose_columns(
            self._config, self.loader.task, self.loader.description, reader, now or datetime.now()
        )
        check_apart(self._folder, reader, self._config.input)
        if self._config.mirror:
            writer = make_writer(self._config.output_extension)
            self.names = output_names(self._config.input, reader.files, self._config.output_extension, writer)

    def check_input(self) -> None:
        """Raises ChangedError where it is not what was read."""
        if self.reader.fingerprint() != self._fingerprint:
            raise ChangedError(f"{self._config.input} changed while it was read; --overwrite starts anew")

    def continued(self, say: Callable[[str], None]) -> dict[str, Any]:
        """The manifest of the run that is gone on with; new files are written into it.

        Raises ChangedError, and DamagedError where --retry-errors was stopped and only it can end what it began.
        """
        found = continued(self._folder.manifest(), self.reader, self._config, self._reopen)
        told = (found.manifest.get("plan") or {}).get("prompts_at")
        if found.reader is not self.reader or told:
            self._take(found.reader, datetime.fromisoformat(told) if told else None)
        identity = self._identity()
        check_same_commit(found.manifest["model"], identity["model"], self._config.model, self._config.adapter)
        check_unchanged(found.manifest, identity)
        retries = Retries(self._folder)
        self.torn = retries.settle(self._folder.commits()) if retries.pending() else []  # it reads all records
        if self.torn and not self._config.retry_errors:
            raise DamagedError(f"shard {self.torn[0]} is half replaced: the same command with --retry-errors mends it")
        if found.num_new:
            self._folder.drop_report()
            self._folder.write_manifest(found.manifest)
            say(f"new files in the input: {found.num_new:,}; their rows are added")
        return found.manifest

    def same_plan(self, manifest: dict[str, Any]) -> Plan:
        """The manifest's, with the loader made ready for it. Raises ChangedError for other versions."""
        plan = Plan(**manifest["plan"])
        self.loader = self.loader.sibling(plan.backend)
        check_unchanged(manifest["plan"], {"versions": self.loader.versions(plan.engine)})
        self._see_rows()
        return plan

    def new_plan(self, fitted: Callable[[Plan], Plan] = lambda plan: plan) -> Plan:
        """Decides the plan and writes the manifest, before the first shard. fitted: the plan as it is to be written."""
        texts = Texts(self.columns.text, self.columns.pair)
        total_rows, asked = self._see_rows(), self._config.plan
        self.loader, plan = (
            replayed(self.loader, asked, texts) if asked else choose(self.loader, total_rows, texts, clock=self._clock)
        )
        plan = fitted(plan)
        if self.columns.now is not None:
            plan = plan.model_copy(update={"prompts_at": self.columns.now.isoformat()})
        manifest = {
            **self._identity(),
            "plan": plan.model_dump(mode="json"),
            "budgets": [[0, plan.max_batch_tokens, plan.batch_size]],
            "finished": False,
        }
        self._folder.write_manifest(manifest)
        return plan

    def _identity(self) -> dict[str, Any]:
        """What an output belongs to."""
        return {
            "settings": self._config.settings(),
            "input": self._fingerprint,
            "model": self.loader.material.identity(),
        }

    def _see_rows(self) -> float:
        """Shows the loader rows of the input, of its first files where some came later; estimated rows of the job."""
        sample = sample_of(getattr(self.reader, "first", self.reader), self.columns, self._config.limit)
        self.sample = sample
        self.loader.see(sample.texts[0], sample.pairs, sample.is_whole, self.columns.adds_special_tokens)
        return sample.total_rows

    def _clock(self) -> float:
        """Read between the batches of trials, so that a stop is seen there too."""
        if self._stop.event.is_set():
            raise InterruptedRunError(self._stop.signum, 0)
        return time.perf_counter()
