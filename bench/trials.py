"""Run the contenders, each in a process of its own, and hold their outputs against the reference."""

import os
import random
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bench.contract import SEED, Job, Measurement, ModelSpec, Options
from bench.discover import Contender
from bench.parity import Parity, Tolerances, compare
from bench.workloads import ROOT, read_rows, sample_rows, write_rows

# Two batches of 32; a slow contender would spend minutes on them.
WARMUP_ROWS, SLOW_WARMUP_ROWS = 64, 8


class ChildError(Exception):
    """A child process failed; the message is the last line it wrote."""


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


@dataclass(frozen=True)
class Bench:
    """Everything a trial needs that does not change between trials."""

    model: ModelSpec
    files: RowFiles
    reference: dict[int, np.ndarray]  # row id -> output of the reference [C]
    tolerances: Tolerances
    work_dir: Path

    def run(self, contender: Contender, round_number: int) -> Trial:
        """Run a contender once. An error becomes part of the result, it is never dropped."""
        rows_file = self.files.slow if contender.is_slow else self.files.all_rows
        warmup_rows = SLOW_WARMUP_ROWS if contender.is_slow else WARMUP_ROWS
        folder = make_folder(self.work_dir / f"{contender.label.replace(':', '_')}-{round_number}")
        options = contender.options(warmup_rows, folder)
        try:
            job = Job(module=contender.module.__name__, model=self.model, rows_file=rows_file, options=options)
            measurement, outputs = run_child(job, folder)
        except ChildError as error:
            return Trial(contender, round_number, error=str(error))
        return Trial(contender, round_number, measurement, self._compare(contender, rows_file, outputs))

    def _compare(self, contender: Contender, rows_file: Path, outputs: np.ndarray) -> Parity:
        found = [(row, id_) for row, id_ in enumerate(read_ids(rows_file)) if id_ in self.reference]
        expected = np.stack([self.reference[id_] for _, id_ in found])
        seen = outputs[[row for row, _ in found]]
        return compare(seen, expected, self.model.task, contender.precision, self.tolerances)


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
    job = Job(module="bench.reference", model=model, rows_file=files.reference, options=options)
    try:
        measurement, outputs = run_child(job, folder)
    except ChildError as error:
        raise SystemExit(f"the reference failed: {error}") from None
    return dict(zip(read_ids(files.reference), outputs, strict=True)), measurement


def make_folder(folder: Path) -> Path:
    """An empty folder for a job of its own."""
    folder.mkdir()
    return folder


def run_child(job: Job, folder: Path) -> tuple[Measurement, np.ndarray]:
    """Run a job in a process of its own and read what it left in the folder."""
    job_file = folder / "job.json"
    job_file.write_text(job.model_dump_json(), encoding="utf-8")
    # Nothing is fetched while the clock runs.
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    with (folder / "child.log").open("wb") as log:
        command = [sys.executable, "-m", "bench.child", str(job_file)]
        status = subprocess.run(command, cwd=ROOT, env=environment, stdout=log, stderr=log, check=False).returncode
    if status:
        raise ChildError(last_line(folder / "child.log", status))
    measurement = Measurement.model_validate_json((folder / "result.json").read_text(encoding="utf-8"))
    return measurement, np.load(folder / "outputs.npy")


def last_line(log: Path, status: int) -> str:
    """The last line a failed child wrote; of one killed by a signal, the signal."""
    if status < 0:
        return f"ended by signal {-status}{' (out of memory?)' if status == -9 else ''}"
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1].strip() if lines else f"exit code {status}, no message"
