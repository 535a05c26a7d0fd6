"""What the report shows beyond counters, gathered while a run works: commits, examples of errors, energy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from packhorse.data import RowError
from packhorse.devices.energy import EnergyMeter
from packhorse.machine import read_machine
from packhorse.metrics import LiveCounters, RunReport
from packhorse.timeline import Timeline

EXAMPLES = 3  # of each kind of error
SAMPLE = ("elapsed_s", "rows", "real_tokens", "computed_tokens")


class Recorder:
    """One for the rows of one process: `committed` after each commit, `fill` at the end. One thread commits."""

    def __init__(self, live: LiveCounters, device: str) -> None:
        self.energy = EnergyMeter(device)
        self._live = live
        self._commits = Timeline(live.started)
        self._rows = 0
        self._examples: dict[str, list[dict[str, Any]]] = {}

    def committed(self, rows: int, first_row: int, errors: Mapping[int, RowError]) -> None:
        """rows: of the shard; first_row: its first row's number in the input; errors: by row of the shard."""
        self._rows += rows
        self._commits.add(self._rows)
        for row, error in errors.items():
            examples = self._examples.setdefault(error.kind, [])
            if len(examples) < EXAMPLES:
                examples.append({"row": first_row + row, "message": error.message})

    def fill(self, report: RunReport) -> None:
        """Writes what was gathered into the report."""
        self._commits.add(self._rows, is_last=True)
        report.samples = [dict(zip(SAMPLE, point, strict=True)) for point in self._live.timeline.points]
        report.commits = [{"elapsed_s": at, "rows": rows} for at, rows in self._commits.points]
        report.error_examples = self._examples
        report.energy_j, report.energy_sources = self.energy.joules, self.energy.sources
        report.energy_reason = self.energy.reason
        report.machine = read_machine()
