"""The plan of a job that generates: precision, engine, and how many rows are written on at the same time."""

from __future__ import annotations

import contextlib
import dataclasses
import statistics
import time
from typing import NamedTuple

import numpy as np

from packhorse.data import Int64s
from packhorse.errors import DeviceOutOfMemoryError
from packhorse.generation import Prompts
from packhorse.loading.loader import Loader
from packhorse.plans import Alternative, Forecast, Plan
from packhorse.stages import Generator
from packhorse.tuning.measure import Clock

PRECISIONS = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}  # by torch's names
ROWS = {"cpu": 64}  # written on at the same time, where nothing is measured; a step's cost is the weights' reading
ROWS_ELSEWHERE = 128
LADDER = (16, 32, 64, 128, 256, 512)
TRIAL_PROMPT_TOKENS, TRIAL_STEPS = 64, 6
LONG_JOB = 20  # trials of one size: fewer rows than so many times it do not repay a trial
GAIN = 1.05  # more rows cost memory: they are taken only where they gain as much


class Rate(NamedTuple):
    rows: int
    tokens_per_s: float  # of a step of all rows


def choose_writing(loader: Loader, total_rows: float, column: str, clock: Clock = time.perf_counter) -> Plan:
    """Raises UsageError or ModelError."""
    precision, notes = _precision(loader)
    model = loader.generator(precision)
    rates, rows = _rows(loader, model, total_rows, clock)
    s = loader.settings
    budget = loader.candidate(precision).max_batch_tokens
    tokenizer = loader.material.choose_tokenizer("hf" if s.exact else s.tokenizer)
    return Plan(
        task=loader.description.task, backend=loader.backend_name, device=loader.device.split(":")[0],
        precision=precision, attention=model.attention, batching="packed" if model.engine == "continuous" else "padded",
        engine=model.engine, max_new_tokens=model.max_new_tokens, batch_size=rows, max_batch_tokens=budget,
        max_length=loader.max_length(precision), workers=loader.workers, threads=loader.threads,
        tokenizer=tokenizer.name, tokenizer_threads=loader.material.tokenizer_threads, text_column=column,
        pair_column=None, notes=(*notes, *loader.material.notes, *model.notes, *tokenizer.notes),
        versions=loader.versions(), alternatives=_alternatives(loader, precision, rows, rates),
        forecast=_forecast(loader, total_rows, rates, rows),
    )  # fmt: skip


def _precision(loader: Loader) -> tuple[str, tuple[str, ...]]:
    """What was asked for; else the type of the checkpoint where the device has it, since nothing else is what its
    authors trained or checked."""
    s = loader.settings
    if loader.own_precision is not None:
        return loader.own_precision, (f"{loader.own_precision}: the folder's own weights",)
    if s.exact:
        return "fp32", ("--exact: fp32",)
    if s.precision != "auto":
        return s.precision, ()
    saved = PRECISIONS.get(loader.description.dtype or "float32", "fp32")
    if saved in loader.supported_precisions():
        return saved, (f"{saved}: as the checkpoint was saved",)
    return "fp32", (f"fp32: the checkpoint is {saved}, for which {loader.device} has no instructions",)


# -- rows at the same time


def _rows(loader: Loader, model: Generator, total_rows: float, clock: Clock) -> tuple[list[Rate], int]:
    """Measured where the job is long enough, else a usual number."""
    s = loader.settings
    usual = s.batch_size or ROWS.get(loader.device, ROWS_ELSEWHERE)
    sample = loader.material.rows
    can_try = model.engine in ("continuous", "static") and sample.num_rows and s.tune != "off" and not s.batch_size
    if not can_try:
        return [], usual
    rates: list[Rate] = []
    for rows in LADDER:
        if total_rows < rows * (LONG_JOB if s.tune == "quick" else 1):
            break
        try:
            rates.append(Rate(rows, step_rate(model, _prompts(loader, rows), loader, rows, clock)))
        except DeviceOutOfMemoryError:
            break
        if len(rates) > 1 and rates[-1].tokens_per_s < rates[-2].tokens_per_s * GAIN:
            break
    if not rates:
        return [], usual
    best = max(rates, key=lambda r: r.tokens_per_s)
    return rates, best.rows


def _prompts(loader: Loader, rows: int) -> Prompts:
    """Prompts of the job, cut short: what is measured are steps."""
    sample = loader.material.rows
    tokens = sample.take(np.arange(rows) % sample.num_rows)
    lengths = np.minimum(tokens.lengths, TRIAL_PROMPT_TOKENS)
    places: Int64s = np.repeat(tokens.offsets[:-1], lengths) + _within(lengths)
    cut = dataclasses.replace(tokens, ids=tokens.ids[places], offsets=np.concatenate([[0], np.cumsum(lengths)]))
    return Prompts(cut, np.arange(rows, dtype=np.uint64))


def _within(lengths: Int64s) -> Int64s:
    places: Int64s = np.arange(int(lengths.sum())) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    return places


class _EnoughError(Exception):
    """Raised out of a trial that has seen enough steps."""


def step_rate(model: Generator, prompts: Prompts, loader: Loader, rows: int, clock: Clock) -> float:
    """Tokens a second of steps in which all rows are written on. Raises DeviceOutOfMemoryError."""
    ticks: list[float] = []

    def on_step(finished: int, tokens: int) -> None:
        if tokens <= rows:  # a step, not the reading of prompts
            ticks.append(clock())
        if len(ticks) > TRIAL_STEPS:
            raise _EnoughError

    budget = loader.candidate("fp32").max_batch_tokens
    begin = clock()
    with contextlib.suppress(_EnoughError):
        model.generate(prompts, rows, budget, on_step)
    if len(ticks) < 2:  # outputs of one token
        return rows / max(clock() - begin, 1e-9)
    return rows / max(statistics.median(np.diff(ticks).tolist()), 1e-9)


# -- what is told


def _alternatives(loader: Loader, precision: str, rows: int, rates: list[Rate]) -> tuple[Alternative, ...]:
    """By rows at the same time, the chosen one first."""
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


def _forecast(loader: Loader, total_rows: float, rates: list[Rate], rows: int) -> Forecast:
    lengths = loader.material.lengths
    mean = float(lengths.mean()) if len(lengths) else 0.0
    return Forecast(
        rows=total_rows, tokens=mean * total_rows, sample_rows=len(lengths),
        tokens_per_s=next((r.tokens_per_s for r in rates if r.rows == rows), None),
        source="measured" if rates else "default",
    )  # fmt: skip
