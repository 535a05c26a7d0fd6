"""One number varied over one loop: dynamic padding by batch size, and by maximum length."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator

from packhorse.comparison.contract import Frozen
from packhorse.comparison.discover import parse_contender
from packhorse.comparison.levers import BATCH_SIZES, lengths_to_sweep
from packhorse.comparison.trials import Bench, Trial

LOOP = "dynamic_padding"
Say = Callable[[str], None]


class Point(Frozen):
    """The loop at one value. `max_difference`: to the reference at the model's full length.

    A rate is None where the loop failed, or where its outputs do not match: then `error` says so. Along the maximum
    length outputs differ because rows are cut: there the difference is what the cut costs, and no error.
    """

    value: int
    rows_per_s: float | None = None
    tokens_per_s: float | None = None
    batch_s: float | None = None
    padding_efficiency: float | None = None
    peak_bytes: int | None = None
    max_difference: float | None = None
    error: str = ""


def sweep_batch_sizes(bench: Bench, say: Say) -> Iterator[Point]:
    """Rows a batch, 1 to 256, in input order."""
    for size in BATCH_SIZES:
        yield _point(size, bench.run(parse_contender(f"{LOOP}:{size}", bench.model.task), 0), say, "batch size")


def sweep_max_lengths(bench: Bench, say: Say) -> Iterator[Point]:
    """Tokens a row, 32 rows a batch."""
    for length in lengths_to_sweep(bench.model.max_length):
        work_dir = bench.work_dir / f"length-{length}"
        work_dir.mkdir()
        cut = dataclasses.replace(bench, model=bench.model.model_copy(update={"max_length": length}), work_dir=work_dir)
        yield _point(length, cut.run(parse_contender(LOOP, bench.model.task), 0), say, "max length")


def _point(value: int, trial: Trial, say: Say, what: str) -> Point:
    measured, parity = trial.measurement, trial.parity
    if measured is None or parity is None:
        say(f"{what} {value}: {trial.error}")
        return Point(value=value, error=trial.error)
    if what == "batch size" and not parity.matches:
        say(f"{what} {value}: {parity.reason}")
        return Point(value=value, max_difference=parity.max_difference, error=parity.reason)
    say(f"{what} {value}: {measured.rows_per_s:,.1f} rows/s")
    return Point(
        value=value,
        rows_per_s=measured.rows_per_s,
        tokens_per_s=measured.tokens_per_s,
        batch_s=measured.batch_s,
        padding_efficiency=measured.padding_efficiency,
        peak_bytes=measured.peak_bytes,
        max_difference=parity.max_difference,
    )
