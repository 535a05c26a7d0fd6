"""Which precision a job runs at: asked for, or the lower one where rows of this very job agree with fp32."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from packhorse.batching import planner
from packhorse.config import EngineConfig
from packhorse.data import Batch, Float32s, Int64s, Reduction, Tokens
from packhorse.errors import BatchRefusedError, DeviceOutOfMemoryError, ModelError
from packhorse.stages import LoadedModel, Output
from packhorse.tuning.gate import MIN_JOB_ROWS, Verdict, compare, default_tolerance

LoadAt = Callable[[str], LoadedModel]


class Choice(NamedTuple):
    """A precision and why."""

    precision: str
    notes: tuple[str, ...] = ()
    verdict: Verdict | None = None  # of a precision below fp32, where it was compared


def choose_precision(
    settings: EngineConfig,
    device: str,
    supported: tuple[str, ...],
    job_rows: float,
    rows: Tokens,
    load: LoadAt,
    budget: Callable[[str], int],
) -> Choice:
    """supported: those the device has instructions for. rows: the sample on which the lower one has to agree.

    Raises ModelError where --tolerance was given for a precision asked for by name, and is exceeded.
    """
    if settings.exact:
        return Choice("fp32", ("--exact: fp32, one thread",))
    asked: str = settings.precision
    if asked == "fp32":
        return Choice("fp32")
    if asked == "auto" and settings.attention.startswith("flash"):  # has no fp32 kernels
        asked = next(p for p in supported if p in ("bf16", "fp16"))
    if asked != "auto":
        slow = f"{device} has no instructions for {asked}: expect it to be 10-30x slower than fp32"
        notes = () if asked in supported else (slow,)
        verdict, note = _judge_asked(asked, settings.tolerance, job_rows, rows, load, budget)
        return Choice(asked, (*notes, *note), verdict)
    lower = [p for p in supported if p in ("bf16", "fp16") and (device != "cpu" or p == "bf16")]
    if not lower:
        return Choice("fp32")
    if job_rows < MIN_JOB_ROWS:
        return Choice("fp32", (f"fp32: {job_rows:,.0f} rows are too few to check {lower[0]} against it",))
    verdict = try_precision(lower[0], settings.tolerance, rows, load, budget)
    chosen = lower[0] if verdict.passed else "fp32"
    does = "agrees" if verdict.passed else "does not agree"
    return Choice(chosen, (f"{chosen}: {lower[0]} {does}; {verdict.finding}",), verdict if verdict.passed else None)


def _judge_asked(
    asked: str, tolerance: float | None, job_rows: float, rows: Tokens, load: LoadAt, budget: Callable[[str], int]
) -> tuple[Verdict | None, tuple[str, ...]]:
    """A precision asked for by name is measured too, where the job is long enough to pay for it."""
    if tolerance is None and job_rows < MIN_JOB_ROWS:
        return None, ()
    try:
        verdict = try_precision(asked, tolerance, rows, load, budget)
    except ModelError as error:
        return None, (f"{asked} was not compared with fp32: {error}",)
    if verdict.passed:
        return verdict, (f"{asked} agrees with fp32; {verdict.finding}",)
    if tolerance is not None:
        raise ModelError(
            f"--precision {asked} does not agree with fp32: {verdict.finding}. Choose --precision fp32 or a higher "
            "--tolerance; without --tolerance it is used all the same, and the difference reported"
        )
    return verdict, (f"{asked} was asked for, but DOES NOT AGREE with fp32; {verdict.finding}",)


def try_precision(
    precision: str, tolerance: float | None, rows: Tokens, load: LoadAt, budget: Callable[[str], int]
) -> Verdict:
    """The precision's values of these rows against fp32's."""
    if not rows.num_rows:
        return Verdict(False, "no row of the sample can be computed")
    reference_model = load("fp32")
    reference = values_of(reference_model, rows, budget("fp32"))
    can_be_done = np.isfinite(reference).all(1)
    if not can_be_done.any():
        return Verdict(False, "no row of the sample can be computed")
    candidate = values_of(load(precision), rows.take(np.flatnonzero(can_be_done)), budget(precision))
    reduction: Reduction = reference_model.reduction
    return compare(reference[can_be_done], candidate, reduction, tolerance or default_tolerance(precision, reduction))


def values_of(model: LoadedModel, tokens: Tokens, max_batch_tokens: int) -> Float32s:
    """[n, width], without padding; NaN for a row that cannot be done."""
    values = np.full((tokens.num_rows, model.reduction.width), np.nan, np.float32)
    plan = planner("packed" if model.is_packed else "equal")(tokens.lengths, max_batch_tokens, None)
    for b in range(0, plan.num_batches, model.in_flight):  # so many at the same time
        batches = [plan.rows(i) for i in range(b, min(b + model.in_flight, plan.num_batches))]
        for rows, started in [(rows, _start(model, tokens, rows)) for rows in batches]:
            result = _result(started)
            if result is not None:
                values[rows] = result
                continue
            for row in rows if len(rows) > 1 else ():
                alone = _result(_start(model, tokens, np.array([row])))
                if alone is not None:  # else an error row of the run, not its end
                    values[row] = alone
    return values


def _start(model: LoadedModel, tokens: Tokens, rows: Int64s) -> Output | None:
    try:
        return model.forward(Batch(tokens.take(rows)))
    except (DeviceOutOfMemoryError, BatchRefusedError):
        return None


def _result(started: Output | None) -> Float32s | None:
    try:
        return None if started is None else started.numpy()
    except (DeviceOutOfMemoryError, BatchRefusedError):
        return None
