"""Run the contenders, each in a process of its own, and hold their outputs against the reference."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from packhorse.comparison.contract import SEED, Job, Measurement, ModelSpec, Options
from packhorse.comparison.discover import Contender
from packhorse.comparison.parity import Parity, Tolerances, compare
from packhorse.comparison.processes import ChildError, run_child
from packhorse.comparison.rows import read_rows, sample_rows, write_rows
from packhorse.errors import ModelError

# Two batches of 32; a slow contender would spend minutes on them.
WARMUP_ROWS, SLOW_WARMUP_ROWS = 64, 8


@dataclass(frozen=True)
class RowFiles:
    """The rows on disk: all of them, the sample for slow contenders, the sample for the reference."""

    all_rows: Path
    slow: Path
    reference: Path


@dataclass(frozen=True)
class Trial:
    """One run of one contender. `measurement` and `parity` are None if it failed, and `error` says why."""

    contender: Contender
    round: int
    measurement: Measurement | None = None
    parity: Parity | None = None
    error: str = ""

    def line(self, repeat: int) -> str:
        """How it went, in one line."""
        what = f"{f'round {self.round}/{repeat} ' if repeat > 1 else ''}{self.contender.label}: "
        if self.measurement is None:
            return f"{what}failed: {self.error}"
        return f"{what}{self.measurement.rows_per_s:,.1f} rows/s in {self.measurement.run_s:.1f} s"

    def told(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "contender": self.contender.label,
            "round": self.round,
            "measurement": self.measurement and self.measurement.model_dump(mode="json"),
            "parity": self.parity and vars(self.parity),
            "error": self.error,
        }

    @property
    def plan_notes(self) -> list[str]:
        """What packhorse says about its decisions, where this was packhorse."""
        report = self.measurement.details.get("report", {}) if self.measurement else {}
        notes: list[str] = report.get("plan", {}).get("notes", [])
        return notes


@dataclass(frozen=True)
class Bench:
    """Everything a trial needs that does not change between trials."""

    model: ModelSpec
    files: RowFiles
    reference: dict[int, np.ndarray]  # row id -> output of the reference [C]
    tolerances: Tolerances
    work_dir: Path
    limit_s: float | None = None  # for each contender, set-up included

    def run(self, contender: Contender, round_number: int) -> Trial:
        """Run a contender once. An error becomes part of the result, it is never dropped."""
        if contender.missing:
            return Trial(contender, round_number, error=contender.missing)
        rows_file = self.files.slow if contender.is_slow else self.files.all_rows
        warmup_rows = SLOW_WARMUP_ROWS if contender.is_slow else WARMUP_ROWS
        folder = make_folder(self.work_dir / f"{contender.label.replace(':', '_')}-{round_number}")
        options = contender.options(warmup_rows, folder, self.limit_s)
        try:
            job = Job(module=contender.module.__name__, model=self.model, rows_file=rows_file, options=options)
            measurement, outputs = run_child(job, folder)
        except ChildError as error:
            return Trial(contender, round_number, error=str(error))
        parity = self._compare(measurement.precision or contender.precision, rows_file, outputs)
        return Trial(contender, round_number, measurement, parity)

    def _compare(self, precision: str, rows_file: Path, outputs: np.ndarray) -> Parity:
        found = [(row, id_) for row, id_ in enumerate(read_ids(rows_file)) if id_ in self.reference]
        expected = np.stack([self.reference[id_] for _, id_ in found])
        seen = outputs[[row for row, _ in found]]
        return compare(seen, expected, self.model.task, precision, self.tolerances)


def read_ids(rows_file: Path) -> list[int]:
    """The row ids of a file of rows."""
    ids: list[int] = read_rows(rows_file).ids.tolist()
    return ids


def write_row_files(folder: Path, texts: list[str], slow_rows: int, reference_rows: int, has_slow: bool) -> RowFiles:
    """Write the rows and both samples.

    A slow contender runs on its sample only, so half of the reference's rows are taken from there.
    """
    all_ids = list(range(len(texts)))
    slow_ids = sample_rows(len(texts), slow_rows)
    if has_slow:
        from_slow = stratified_by_length(texts, slow_ids, max(1, reference_rows // 2))
        others = sorted(set(all_ids) - set(from_slow))
        reference_ids = sorted(from_slow + stratified_by_length(texts, others, reference_rows - len(from_slow)))
    else:
        reference_ids = stratified_by_length(texts, all_ids, reference_rows)
    return RowFiles(
        all_rows=write_rows(folder / "rows.parquet", texts, all_ids),
        slow=write_rows(folder / "rows-slow.parquet", texts, slow_ids),
        reference=write_rows(folder / "rows-reference.parquet", texts, reference_ids),
    )


def stratified_by_length(texts: list[str], ids: list[int], num_rows: int) -> list[int]:
    """Ascending ids: one from each of `num_rows` equal groups of rows ordered by length, both ends in."""
    if not num_rows:
        return []
    by_length = sorted(ids, key=lambda row: (len(texts[row]), row))
    if num_rows >= len(by_length):
        return sorted(by_length)
    rng = random.Random(SEED)
    groups = [group.tolist() for group in np.array_split(np.array(by_length), num_rows)]
    inner = [rng.choice(group) for group in groups[1:-1]]
    ends = [by_length[0], by_length[-1]] if num_rows > 1 else [by_length[-1]]
    return sorted(ends + inner)


def compute_reference(model: ModelSpec, files: RowFiles, work_dir: Path) -> tuple[dict[int, np.ndarray], Measurement]:
    """Row id -> output of plain transformers, row by row; and what that cost."""
    folder = make_folder(work_dir / "reference")
    options = Options(precision="fp32", warmup_rows=1, work_dir=folder)
    job = Job(module="packhorse.comparison.reference", model=model, rows_file=files.reference, options=options)
    try:
        measurement, outputs = run_child(job, folder)
    except ChildError as error:
        raise ModelError(f"model {model.name}: plain transformers, the reference, failed: {error}") from None
    return dict(zip(read_ids(files.reference), outputs, strict=True)), measurement


def make_folder(folder: Path) -> Path:
    """An empty folder for a job of its own."""
    folder.mkdir()
    return folder
