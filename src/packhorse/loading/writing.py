"""The plan of a job that generates: precision, engine, and how many rows are written on at the same time."""

from __future__ import annotations

import time
from typing import NamedTuple

from packhorse.errors import DeviceOutOfMemoryError
from packhorse.generation import PACKED_ENGINES
from packhorse.loading.checking import device_map_of
from packhorse.loading.comparing import compare_quantized
from packhorse.loading.engines import GAIN, choose_engine, prefill_tokens
from packhorse.loading.loader import Loader
from packhorse.loading.stepping import step_rate, trial_prompts
from packhorse.plans import Alternative, Forecast, Plan
from packhorse.stages import Generator
from packhorse.tuning.measure import Clock

PRECISIONS = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}  # by torch's names
ROWS = {"cpu": 64}  # written on at the same time, where nothing is measured; a step's cost is the weights' reading
ROWS_ELSEWHERE = 128
LADDER = (16, 32, 64, 128, 256, 512)
LONG_JOB = 20  # trials of one size: fewer rows than so many times it do not repay a trial


class Rate(NamedTuple):
    rows: int
    tokens_per_s: float  # of a step of all rows


def choose_writing(loader: Loader, total_rows: float, column: str, clock: Clock = time.perf_counter) -> Plan:
    """Raises UsageError or ModelError."""
    precision, notes = writing_precision(loader)
    loader.engine = loader.settings.engine  # an earlier job of this loader may have had another
    model = loader.generator(precision)
    begin = clock()
    rates, rows = _rows(loader, model, total_rows, clock)
    quality, found = compare_quantized(loader, precision, _reference(loader), rows, clock)
    choice = choose_engine(loader, precision, rows, _rate_of(rates, rows), total_rows, clock)
    tuned_s = clock() - begin
    s = loader.settings
    tokenizer = loader.material.choose_tokenizer("hf" if s.exact else s.tokenizer)
    return Plan(
        task=loader.description.task, backend=loader.backend_name, device=loader.device.split(":")[0],
        precision=precision, attention=model.attention,
        batching="packed" if model.engine in PACKED_ENGINES else "padded",
        engine=model.engine, max_new_tokens=model.max_new_tokens, batch_size=rows,
        max_batch_tokens=prefill_tokens(loader, model.engine),
        max_length=loader.max_length(precision), workers=loader.workers, threads=loader.threads,
        tokenizer=tokenizer.name, tokenizer_threads=loader.material.tokenizer_threads, text_column=column,
        pair_column=None, notes=(*notes, *choice.notes, *found, *loader.material.notes, *model.notes, *tokenizer.notes),
        device_map=device_map_of(model), quality=quality, versions=loader.versions(model.engine),
        alternatives=(*choice.alternatives, *_alternatives(loader, precision, rows, rates)),
        forecast=_forecast(loader, total_rows, choice.tokens_per_s or _rate_of(rates, rows), tuned_s),
    )  # fmt: skip


def writing_precision(loader: Loader) -> tuple[str, tuple[str, ...]]:
    """What was asked for; else the type of the checkpoint where the device has it, since nothing else is what its
    authors trained or checked."""
    s = loader.settings
    if loader.own_precision is not None:
        return loader.own_precision, (f"{loader.own_precision}: the folder's own weights",)
    if s.exact:
        return "fp32", ("--exact: fp32",)
    if s.precision != "auto":
        return s.precision, ()
    saved = _saved(loader)
    if saved in loader.supported_precisions():
        return saved, (f"{saved}: as the checkpoint was saved",)
    return "fp32", (f"fp32: the checkpoint is {saved}, for which {loader.device} has no instructions",)


def _reference(loader: Loader) -> str:
    """The type of the checkpoint where the device has it, else fp32."""
    saved = _saved(loader)
    return saved if saved in loader.supported_precisions() else "fp32"


def _saved(loader: Loader) -> str:
    return PRECISIONS.get(loader.description.dtype or "float32", "fp32")


# -- rows at the same time


def rows_at_once(loader: Loader) -> int:
    """As --batch-size says, else a usual number."""
    return loader.settings.batch_size or ROWS.get(loader.device, ROWS_ELSEWHERE)


def _rows(loader: Loader, model: Generator, total_rows: float, clock: Clock) -> tuple[list[Rate], int]:
    """Measured where the job is long enough, else a usual number."""
    s = loader.settings
    usual = rows_at_once(loader)
    sample = loader.material.rows
    can_try = model.engine in (*PACKED_ENGINES, "static") and sample.num_rows and s.tune != "off" and not s.batch_size
    if not can_try:
        return [], usual
    rates: list[Rate] = []
    for rows in LADDER:
        if total_rows < rows * (LONG_JOB if s.tune == "quick" else 1):
            break
        try:
            rates.append(Rate(rows, step_rate(model, trial_prompts(loader, rows), loader, clock)))
        except DeviceOutOfMemoryError:
            break
        if len(rates) > 1 and rates[-1].tokens_per_s < rates[-2].tokens_per_s * GAIN:  # more rows cost memory
            break
    if not rates:
        return [], usual
    best = max(rates, key=lambda r: r.tokens_per_s)
    return rates, best.rows


# -- what is told


def _alternatives(loader: Loader, precision: str, rows: int, rates: list[Rate]) -> tuple[Alternative, ...]:
    """By rows at the same time, the chosen one first: of steps with all of them."""
    listed = sorted(rates, key=lambda r: r.rows != rows)
    return tuple(
        Alternative(
            backend=loader.backend_name, precision=precision, max_batch_tokens=0, workers=loader.workers,
            threads=loader.threads, measured_tokens_per_s=rate.tokens_per_s, rows_at_once=rate.rows,
            status="chosen" if rate.rows == rows else "beaten",
            reason="" if rate.rows == rows else "fewer tokens a second, or too few more for the memory",
        )
        for rate in listed
    )  # fmt: skip


def _rate_of(rates: list[Rate], rows: int) -> float | None:
    return next((r.tokens_per_s for r in rates if r.rows == rows), None)


def _forecast(loader: Loader, total_rows: float, tokens_per_s: float | None, tuned_s: float) -> Forecast:
    lengths = loader.material.lengths
    mean = float(lengths.mean()) if len(lengths) else 0.0
    return Forecast(
        rows=total_rows, tokens=mean * total_rows, sample_rows=len(lengths),
        tokens_per_s=tokens_per_s, tuned_s=tuned_s, source="measured" if tokens_per_s else "default",
    )  # fmt: skip
