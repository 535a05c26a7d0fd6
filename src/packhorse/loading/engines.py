"""Which engine a job is written with: those that are right for its model, tried on prompts of the job.

A rate of steps with all rows says nothing of what engines differ in: prompts of different lengths read together, rows
that end early and leave a place behind. So a trial is a small job: three times as many outputs as are written on at
once, their lengths spread evenly from an eighth of the longest to the longest, prompts cut to the share that the
longest output is of max_new_tokens. Lengths are forced, so that all engines do the same work; how long the job's own
outputs become nobody knows before.

What it cannot show: where a forward costs the same whatever it holds, rows that are replaced more often than in the job
make the engine slower that lets them enter, so that outputs are not made shorter than 16 tokens.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple, cast

import numpy as np

from packhorse.data import Int64s, Tokens
from packhorse.errors import DeviceOutOfMemoryError, ModelError, UsageError, first_line
from packhorse.generation import PACKED_ENGINES, Prompts
from packhorse.loading.loader import Loader
from packhorse.loading.stepping import EnoughError, sampled_rows, step_rate, trial_prompts
from packhorse.plans import Alternative, Status
from packhorse.stages import Generator, SeveralEngines
from packhorse.tuning.measure import Clock

STATIC_PREFILL_TOKENS = 16_384
WAVES = 3  # outputs of a trial for each row that is written on at once
MOST_TOKENS, LEAST_TOKENS = 128, 16  # of a trial's longest output
SHORTEST = 1 / 8  # of it
TRIAL_S, MOST_TRIAL_S = 6.0, 30.0  # that an engine's trial should take, and may with quick
JOB_SHARE = {"quick": 0.03, "full": 1.0}  # of the job's tokens, at most, that the trials write and read together
GAIN = 1.05  # another engine than the first that is right has to be so much faster
GIVE_UP = 2.0  # times the first engine's time
MIN_PROMPT_TOKENS = 2  # that a longer prompt keeps
WARM_UP_ROWS, WARM_UP_TOKENS = 8, 2
# What an engine raises where model or memory are not for it.
FAILURES = (
    ModelError, UsageError, DeviceOutOfMemoryError, RuntimeError, ValueError, TypeError, IndexError, AttributeError,
    KeyError,
)  # fmt: skip
GOLDEN = (5**0.5 - 1) / 2  # fractions of its multiples lie evenly, and in no order


class EngineChoice(NamedTuple):
    """tokens_per_s: written in the trial of the engine taken, prompts read meanwhile; None where none was made."""

    tokens_per_s: float | None = None
    alternatives: tuple[Alternative, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Trial:
    """lengths: of outputs, by their prompt's key. share: what is left of prompts, and of max_new_tokens."""

    prompts: Prompts
    lengths: Int64s
    rows_at_once: int
    share: float
    job_s: float  # that writing all of the job's tokens takes, at most


class Outcome(NamedTuple):
    tokens_per_s: float | None
    failure: str = ""
    is_slow: bool = False  # given up


def choose_engine(
    loader: Loader, precision: str, rows: int, tokens_per_s: float | None, total_rows: float, clock: Clock
) -> EngineChoice:
    """Sets the loader's engine. rows: written on at once. tokens_per_s: of a step with them, where it was measured.

    Nothing is tried, and nothing listed, where an engine was asked for, where nothing is to be measured (--tune off),
    where no rows were seen, and where the backend has one engine.
    """
    model, s = loader.generator(precision), loader.settings
    is_open = isinstance(model, SeveralEngines) and s.engine == "auto" and s.tune != "off"
    if not is_open or not loader.material.rows.num_rows:
        return EngineChoice()
    first, reasons = model.engine, _reasons(loader, model)
    names = [name for name, why_not in reasons.items() if why_not is None]
    if not names:
        return EngineChoice(alternatives=_listed(loader, precision, rows, first, {}, reasons))
    made = _trial(loader, model, rows, 1 + len(names), tokens_per_s, total_rows, clock)
    if isinstance(made, str):
        note = f"{first}, without a trial of {' and '.join(names)}: {made}"
        reasons = {name: why_not or made for name, why_not in reasons.items()}
        return EngineChoice(None, _listed(loader, precision, rows, first, {}, reasons), (note,))
    reasons |= _costly(loader, model, names, made.job_s)
    names = [name for name in names if reasons[name] is None]
    if not names:
        return EngineChoice(alternatives=_listed(loader, precision, rows, first, {}, reasons))
    outcomes = _tried(loader, model, made, [first, *names], clock)
    chosen = _fastest(first, outcomes)
    loader.engine = chosen
    cast(SeveralEngines, model).write_with(chosen)
    listed = _listed(loader, precision, rows, chosen, outcomes, reasons)
    return EngineChoice(outcomes[chosen].tokens_per_s, listed, _notes(first, chosen, outcomes, made))


def prefill_tokens(loader: Loader, engine: str) -> int:
    """Of prompts in one forward. Rows that enter one by one are read as batches of values are; a static batch is read
    at once, however many rows it is to be written on with."""
    usual = loader.candidate("fp32").max_batch_tokens
    is_given = loader.settings.max_batch_tokens is not None
    return usual if engine in PACKED_ENGINES or is_given else max(usual, STATIC_PREFILL_TOKENS)


def _reasons(loader: Loader, model: Generator) -> dict[str, str | None]:
    """Of the engines beside the first: why one is not tried; None where it is."""
    s = loader.settings
    reasons = {name: why for name, why in cast(SeveralEngines, model).engines().items() if name != model.engine}
    if s.tune == "quick":
        reasons["paged"] = reasons.get("paged") or "--tune full tries it"
    of_all = "--exact takes the first that is right" if s.exact else None
    if loader.placement.is_split:
        of_all = "the model lies on several devices"
    return {name: why or of_all for name, why in reasons.items()}


def _costly(loader: Loader, model: Generator, names: list[str], job_s: float) -> dict[str, str]:
    """Why engines are not tried whose set-up is too large a part of the job."""
    most_s = JOB_SHARE[loader.settings.tune] * job_s
    setups = {name: cast(SeveralEngines, model).setup_s(name) for name in names}
    return {
        name: f"its set-up takes about {setup_s:,.0f} s, of a job of {job_s:,.0f} s"
        for name, setup_s in setups.items()
        if setup_s > most_s
    }


# -- the trial


def _trial(
    loader: Loader, model: Generator, rows: int, engines: int, tokens_per_s: float | None, total_rows: float,
    clock: Clock,
) -> Trial | str:  # fmt: skip
    """Or why none is made."""
    samples = loader.settings.decoding().num_samples
    prompts = -(-WAVES * rows // samples)
    most_share = JOB_SHARE[loader.settings.tune] * total_rows / (prompts * engines)
    least = min(LEAST_TOKENS, model.max_new_tokens)
    if most_share * model.max_new_tokens < least:
        return f"{total_rows:,.0f} rows are too few to repay it"
    try:
        rate = tokens_per_s or step_rate(model, trial_prompts(loader, rows), loader, clock)
    except DeviceOutOfMemoryError as error:
        return f"out of memory with {rows} rows at once: {first_line(error)}"
    token_s = WAVES * rows / rate * (1 + float(loader.material.lengths.mean()) / model.max_new_tokens)
    if loader.settings.tune == "quick" and least * token_s > MOST_TRIAL_S:
        return f"it would take {least * token_s:,.0f} s with each; --tune full spends them"
    longest = min(
        MOST_TOKENS, model.max_new_tokens, max(int(TRIAL_S / token_s), least), int(most_share * model.max_new_tokens)
    )  # fmt: skip
    share = longest / model.max_new_tokens
    tokens = _shortened(sampled_rows(loader.material.rows, prompts), share)
    job_s = total_rows * samples * model.max_new_tokens / rate
    keys = np.arange(prompts, dtype=np.uint64)
    return Trial(Prompts(tokens, keys), _lengths(prompts, longest), rows, share, job_s)


def _shortened(tokens: Tokens, share: float) -> Tokens:
    """That share of each row, from its beginning."""
    lengths = np.minimum(
        tokens.lengths, np.maximum(np.ceil(tokens.lengths * share), MIN_PROMPT_TOKENS).astype(np.int64)
    )
    return tokens.first(lengths)


def _lengths(count: int, longest: int) -> Int64s:
    """[count] of outputs."""
    places = (np.arange(count) + 0.5) * GOLDEN % 1.0
    return np.maximum(np.ceil((SHORTEST + (1 - SHORTEST) * places) * longest), 1).astype(np.int64)


def _tried(loader: Loader, model: Generator, trial: Trial, names: list[str], clock: Clock) -> dict[str, Outcome]:
    """By engine, the first one first. What is faster than it is measured once more, beside it, and the better times
    count: noise only adds to a time."""
    first, *others = names
    outcomes = {first: _timed(loader, model, first, trial, None, clock)}
    rate = outcomes[first].tokens_per_s
    limit_s = GIVE_UP * int(trial.lengths.sum()) / rate if rate else None
    for name in others:
        outcomes[name] = _timed(loader, model, name, trial, limit_s, clock)
    leader = _fastest(first, outcomes)
    if leader != first and rate:
        for name in (first, leader):
            again = _timed(loader, model, name, trial, None, clock)
            outcomes[name] = max(outcomes[name], again, key=lambda o: o.tokens_per_s or 0.0)
    return outcomes


def _timed(loader: Loader, model: Generator, name: str, trial: Trial, limit_s: float | None, clock: Clock) -> Outcome:
    """One engine. limit_s: where it is given up."""
    several = cast(SeveralEngines, model)
    try:
        several.write_with(name)
        with several.forced(np.minimum(trial.lengths, WARM_UP_TOKENS)):
            _seconds(loader, model, trial, trial.prompts.take(np.arange(min(WARM_UP_ROWS, trial.prompts.num_rows))),
                     None, clock)  # fmt: skip
        with several.forced(trial.lengths):
            seconds, tokens = _seconds(loader, model, trial, trial.prompts, limit_s, clock)
    except FAILURES as failure:
        return Outcome(None, first_line(failure))
    return Outcome(None, is_slow=True) if tokens is None else Outcome(tokens / max(seconds, 1e-9))


def _seconds(
    loader: Loader, model: Generator, trial: Trial, prompts: Prompts, limit_s: float | None, clock: Clock
) -> tuple[float, int | None]:
    """Of all prompts, and the tokens written; None where it was given up. A static batch holds as many prompts as one
    of the job, though these are shorter."""
    budget = prefill_tokens(loader, model.engine)
    if model.engine == "static":
        budget = max(int(budget * trial.share), 1)
    begin = clock()

    def on_step(finished: int, tokens: int) -> None:
        elapsed_s = clock() - begin  # the clock raises where the run is stopped
        if limit_s is not None and elapsed_s > limit_s:
            raise EnoughError

    tokens = None
    with contextlib.suppress(EnoughError):
        written = model.generate(prompts, trial.rows_at_once, budget, on_step)
        tokens = len(written.ids)
    return clock() - begin, tokens


def _fastest(first: str, outcomes: Mapping[str, Outcome]) -> str:
    """The first, unless another one is clearly faster, or it failed."""
    rates = {name: outcome.tokens_per_s or 0.0 for name, outcome in outcomes.items()}
    best = max(rates, key=lambda name: rates[name])
    return best if rates[best] > GAIN * rates[first] else first


# -- what is told


def _listed(
    loader: Loader, precision: str, rows: int, chosen: str, outcomes: Mapping[str, Outcome],
    reasons: Mapping[str, str | None],
) -> tuple[Alternative, ...]:  # fmt: skip
    """The chosen one first, then those that were tried."""
    names = [chosen, *(n for n in outcomes if n != chosen), *(n for n, why in reasons.items() if why is not None)]
    return tuple(
        Alternative(
            backend=loader.backend_name, precision=precision, max_batch_tokens=prefill_tokens(loader, name),
            workers=loader.workers, threads=loader.threads, rows_at_once=rows, engine=name,
            measured_tokens_per_s=outcomes[name].tokens_per_s if name in outcomes else None,
            status=status, reason=reason,
        )
        for name in names
        for status, reason in (_verdict(name, chosen, outcomes, reasons),)
    )  # fmt: skip


def _verdict(
    name: str, chosen: str, outcomes: Mapping[str, Outcome], reasons: Mapping[str, str | None]
) -> tuple[Status, str]:
    """And the reason."""
    if name == chosen:
        return "chosen", ""
    if name not in outcomes:
        return "not_tried", reasons[name] or ""
    outcome, best = outcomes[name], outcomes[chosen].tokens_per_s
    if outcome.is_slow:
        return "beaten", f"given up: less than 1/{GIVE_UP:.0f} of the first one's tokens a second"
    if outcome.tokens_per_s is None or not best:
        return "failed", outcome.failure
    if outcome.tokens_per_s > best:
        return "beaten", f"faster by less than {GAIN - 1:.0%}"
    return "beaten", f"{outcome.tokens_per_s / best:.2f} times the tokens a second"


def _notes(first: str, chosen: str, outcomes: Mapping[str, Outcome], trial: Trial) -> tuple[str, ...]:
    """What was measured and, of what it led to, what is not plain."""
    if chosen == first:
        failure = outcomes[first].failure
        return (f"{first} failed in its trial, and so did all others: {failure}",) if failure else ()
    best, other = outcomes[chosen].tokens_per_s or 0.0, outcomes[first].tokens_per_s
    gained = f"{best / other:.2f} times its tokens a second" if other else "which failed"
    notes = [f"{chosen} instead of {first}: {gained}, on {trial.prompts.num_rows:,} prompts of the job"]
    if chosen == "paged":
        notes.append("paged: which rows share a forward depends on time, and near ties are not counted")
    return tuple(notes)
