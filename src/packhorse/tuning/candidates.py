"""Ways to run a job, what each is expected to do, and what it did when it was tried."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Literal

from packhorse.data import Int64s
from packhorse.plans import Alternative
from packhorse.tuning.gate import Verdict

Status = Literal["chosen", "beaten", "not_tried", "inaccurate", "failed"]


@dataclass(frozen=True, slots=True)
class Candidate:
    """One way to run a job: a family, and the knobs that need no other weights."""

    backend: str
    precision: str
    max_batch_tokens: int
    workers: int  # forwards at the same time
    threads: int  # inside an operator, each worker's
    compiled: bool = False  # by torch.compile
    tokenizer_threads: int | None = None  # None: as many as otherwise

    @property
    def family(self) -> tuple[str, ...]:
        """What has to be set up: exported, converted, quantized, compiled, loaded."""
        return (self.backend, self.precision, "compiled") if self.compiled else (self.backend, self.precision)

    @property
    def name(self) -> str:
        """backend precision, as in "torch bf16"."""
        return " ".join(self.family)


@dataclass(frozen=True, slots=True)
class JobSize:
    """Rows, real tokens, and tokens of the longest row; the first two estimated where the input was only sampled."""

    rows: float
    tokens: float
    longest: int

    @classmethod
    def of(cls, lengths: Int64s, total_rows: float, sequences_per_row: float = 1.0) -> JobSize:
        """lengths: [n] of the sequences of a sample of the job's rows."""
        mean = float(lengths.mean()) if len(lengths) else 0.0
        return cls(total_rows, total_rows * sequences_per_row * mean, int(lengths.max(initial=0)))

    def run_s(self, tokens_per_s: float | None) -> float:
        """Seconds for all tokens; infinite where the rate is 0 or not known."""
        return self.tokens / tokens_per_s if tokens_per_s else math.inf


@dataclass(frozen=True, slots=True)
class Prediction:
    """What a candidate is expected to do and to cost."""

    tokens_per_s: float  # real tokens; 0: it is not possible here
    setup_s: float  # what its family costs before its first row; 0 where it is loaded already
    trial_s: float  # what trying it costs beside setup_s: warm-up, timing, the accuracy gate where it needs one
    gate_s: float = 0.0  # the part of trial_s that is the accuracy gate

    @property
    def cost_s(self) -> float:
        return self.setup_s + self.trial_s


@dataclass(frozen=True, slots=True)
class Trial:
    """What a candidate did on a sample of the job."""

    tokens_per_s: float | None
    setup_s: float = 0.0  # spent on setting it up in this trial
    remaining_setup_s: float = 0.0  # what the job would still pay if this is chosen
    accuracy: Verdict | None = None  # None where it was not compared
    peak_bytes: int | None = None
    error: str | None = None  # why it cannot run, a sentence
    is_beaten: bool = False  # stopped early: tokens_per_s is the rate seen so far


class Trials:
    """What was measured of a job's candidates, and what is believed of those not tried yet."""

    def __init__(
        self,
        candidates: Sequence[Candidate],
        default: Candidate,
        job: JobSize,
        predict: Callable[[Candidate], Prediction],
    ) -> None:
        """predict: the rate from priors alone; the set-up as it is still to be paid at the moment."""
        self.job, self.default = job, default
        self.listed = list(candidates)  # all that were considered; variations follow the families
        self._may_win = list(candidates)
        self._predict = predict
        self._now: dict[Candidate, Prediction] = {}  # until the next trial
        self._ratios: dict[tuple[str, bool], float] = {}  # backend, compiled: measured / predicted
        self._trials: dict[Candidate, Trial] = {}
        self._before: dict[Candidate, Prediction] = {}  # what was believed before the trial
        self._verdicts: dict[tuple[str, ...], Verdict] = {}

    def add(self, candidate: Candidate, trial: Trial) -> None:
        """A trial that was made: it changes what is believed of others."""
        predicted = self._raw(candidate).tokens_per_s
        self._before[candidate] = self.prediction(candidate)
        self._trials[candidate] = trial
        self._now.clear()
        if candidate not in self.listed:
            self.listed.append(candidate)
        if trial.accuracy is not None:
            self._verdicts.setdefault(candidate.family, trial.accuracy)
        if trial.tokens_per_s and predicted > 0:
            ratio = trial.tokens_per_s / predicted
            kind = candidate.backend, candidate.compiled
            self._ratios[kind] = max(ratio, self._ratios.get(kind, 0.0))

    def accept(self, variation: Candidate) -> None:
        """From now on it may be the best: it gained more than noise."""
        self._may_win.append(variation)

    def __contains__(self, candidate: Candidate) -> bool:
        return candidate in self._trials

    def __bool__(self) -> bool:
        return bool(self._trials)

    def get(self, candidate: Candidate) -> Trial | None:
        return self._trials.get(candidate)

    def has_narrower(self, candidate: Candidate) -> bool:
        """Whether it is fp32, and a lower precision of its backend worked as fast as it is expected to: it computes the
        same products, twice as wide."""
        narrower = [c for c in self._trials if c.backend == candidate.backend and c.precision != "fp32"]
        faster = [c for c in narrower if self.is_usable(c) and self.rate(c) >= self.rate(candidate)]
        return candidate.precision == "fp32" and bool(faster)

    def untried(self) -> list[Candidate]:
        """By predicted total, the least first; in the order given where they are equal."""
        return sorted((c for c in self.listed if c not in self), key=self.total_s)

    def prediction(self, candidate: Candidate) -> Prediction:
        """Its rate in proportion to what its backend was measured at; of one that was tried, as it was before."""
        if candidate in self._before:
            return self._before[candidate]
        raw = self._raw(candidate)
        return replace(
            raw, tokens_per_s=raw.tokens_per_s * self._ratios.get((candidate.backend, candidate.compiled), 1.0)
        )

    def _raw(self, candidate: Candidate) -> Prediction:
        if candidate not in self._now:
            self._now[candidate] = self._predict(candidate)
        return self._now[candidate]

    def rate(self, candidate: Candidate) -> float:
        """Measured where it was tried, else predicted; 0 where it failed."""
        trial = self._trials.get(candidate)
        return self.prediction(candidate).tokens_per_s if trial is None else trial.tokens_per_s or 0.0

    def setup_s(self, candidate: Candidate) -> float:
        """Still to be paid before the first row."""
        trial = self._trials.get(candidate)
        return self.prediction(candidate).setup_s if trial is None else trial.remaining_setup_s

    def total_s(self, candidate: Candidate, times: float = 1.0) -> float:
        """Set-up and all rows, at so many times its rate."""
        return self.setup_s(candidate) + self.job.run_s(times * self.rate(candidate))

    def verdict(self, candidate: Candidate) -> Verdict | None:
        """Of its family: a token budget does not change what rounding does."""
        return self._verdicts.get(candidate.family)

    def is_usable(self, candidate: Candidate) -> bool:
        """Whether it was tried and ran, as accurately as it has to."""
        trial, verdict = self.get(candidate), self.verdict(candidate)
        has_run = trial is not None and bool(trial.tokens_per_s) and trial.error is None
        return has_run and (verdict is None or verdict.passed)

    def alternative(self, candidate: Candidate, status: Status, reason: str) -> Alternative:
        """For the plan."""
        trial, verdict, total_s = self.get(candidate), self.verdict(candidate), self.total_s(candidate)
        return Alternative(
            **asdict(candidate),
            predicted_tokens_per_s=self.prediction(candidate).tokens_per_s,
            measured_tokens_per_s=trial and trial.tokens_per_s,
            setup_s=self.setup_s(candidate),
            total_s=total_s if math.isfinite(total_s) else None,
            accuracy=verdict and verdict._asdict(),
            peak_bytes=trial and trial.peak_bytes,
            status=status,
            reason=reason,
        )

    @property
    def best(self) -> Candidate | None:
        """Of those that work; one that was stopped early has lost."""
        working = [c for c, trial in self._trials.items() if self.is_usable(c) and not trial.is_beaten]
        return min((c for c in self._may_win if c in working), key=self.total_s, default=None)

    @property
    def best_total_s(self) -> float:
        """Of the best; of the default as predicted before anything was tried; infinite where nothing works so far."""
        if self.best is not None:
            return self.total_s(self.best)
        return math.inf if self else self.total_s(self.default)


def neighbours(candidate: Candidate, cores: int, budgets: tuple[int, int]) -> tuple[Candidate, ...]:
    """The candidate with one knob turned: the token budget first, then workers x threads, then tokenizer threads.

    cores: what workers x threads may use; 1 leaves them as they are. budgets: the lowest legal token budget, and the
    highest that is legal and fits into memory.
    """
    lowest, highest = budgets
    around = (2 * candidate.max_batch_tokens, candidate.max_batch_tokens // 2)
    sizes = [replace(candidate, max_batch_tokens=tokens) for tokens in around if lowest <= tokens <= highest]
    shared = 1 if candidate.compiled else cores  # compiled code runs in one worker
    splits = [replace(candidate, workers=workers, threads=threads) for workers, threads in _splits(shared)]
    return (*sizes, *(other for other in splits if other != candidate), *_fewer_tokenizers(candidate, cores))


def _fewer_tokenizers(candidate: Candidate, cores: int) -> Iterator[Candidate]:
    """On cores that it shares with the tokenizer."""
    if candidate.tokenizer_threads is None:
        yield from (replace(candidate, tokenizer_threads=n) for n in dict.fromkeys((cores // 2, 1)) if 0 < n < cores)


def _splits(cores: int) -> Iterator[tuple[int, int]]:
    """One worker a core, one worker with all of them, and between the two."""
    if cores > 1:
        yield cores, 1
        yield 1, cores
    if cores >= 4 and cores % 2 == 0:  # of an odd number one would be idle
        yield cores // 2, 2
