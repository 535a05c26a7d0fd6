"""How fast a model that writes takes its steps, on prompts of the job."""

from __future__ import annotations

import contextlib
import statistics

import numpy as np

from packhorse.data import Tokens
from packhorse.generation import Prompts
from packhorse.loading.loader import Loader
from packhorse.stages import Generator
from packhorse.tuning.measure import Clock

TRIAL_PROMPT_TOKENS, TRIAL_STEPS = 64, 6


def trial_prompts(loader: Loader, rows: int) -> Prompts:
    """Prompts of the job, cut short: what is measured are steps."""
    tokens = sampled_rows(loader.material.rows, rows).first(TRIAL_PROMPT_TOKENS)
    return Prompts(tokens, np.arange(rows, dtype=np.uint64))


def sampled_rows(sample: Tokens, rows: int) -> Tokens:
    """So many of the sample, which lies by length: fewer than it has are spread over all lengths."""
    count = sample.num_rows
    return sample.take(np.arange(rows) % count if rows >= count else np.arange(rows) * count // rows)


class EnoughError(Exception):
    """Raised out of a trial that has seen enough."""


def step_rate(model: Generator, prompts: Prompts, loader: Loader, clock: Clock) -> float:
    """Tokens a second of steps in which all of the prompts are written on. Raises DeviceOutOfMemoryError."""
    ticks: list[float] = []
    rows = prompts.num_rows

    def on_step(finished: int, tokens: int) -> None:
        if tokens <= rows:  # a step, not the reading of prompts
            ticks.append(clock())
        if len(ticks) > TRIAL_STEPS:
            raise EnoughError

    budget = loader.candidate("fp32").max_batch_tokens
    begin = clock()
    with contextlib.suppress(EnoughError):
        model.generate(prompts, rows, max(budget, rows * TRIAL_PROMPT_TOKENS), on_step)
    if len(ticks) < 2:  # outputs of one token
        return rows / max(clock() - begin, 1e-9)
    return rows / max(statistics.median(np.diff(ticks).tolist()), 1e-9)
