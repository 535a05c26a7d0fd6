"""A machine that is a table: what every way does is known, and a clock moves by what trying it costs."""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import numpy as np

from packhorse.tuning.candidates import Candidate, JobSize, Prediction, Trial, neighbours
from packhorse.tuning.gate import Verdict

CORES = 4
BUDGETS = (512, 16_384)
START_BUDGET = 2_048
WARM_UP_S = 0.2
SAMPLE_TOKENS = 4_000
EARLY_SHARE = 0.25  # of a trial, before it may be given up
CLEARLY = 0.8  # of the rate to beat


@dataclass(frozen=True)
class Family:
    """The truth about a backend at a precision, and what is believed of it before."""

    rate: float  # real tokens/s with the best knobs
    setup_s: float = 1.0
    predicted_rate: float | None = None  # None: the truth at the default knobs
    later_setup_s: float | None = None  # once another family of the backend is set up; None: setup_s
    best_budget: int = START_BUDGET
    budget_loss: float = 0.05  # of the rate, a factor of 2 away from the best budget
    splits: tuple[float, float, float] = (1.0, 1.0, 1.0)  # share with n x 1, n/2 x 2 and 1 x n workers x threads
    is_gated: bool = False
    is_accurate: bool = True
    error: str | None = None


@dataclass
class SimulatedMachine:
    """A tuning.search.Workbench."""

    families: dict[tuple[str, str], Family]
    max_tokens: int | None = None  # a batch's; more do not fit into memory
    noise: float = 0.0  # largest relative error of a measured rate
    gate_s: float = 5.0
    seed: int = 0
    now: float = 100.0
    loaded: set[tuple[str, str]] = field(default_factory=set)
    judged: set[tuple[str, str]] = field(default_factory=set)
    measured: list[Candidate] = field(default_factory=list)
    gated_s: float = 0.0  # spent in trials that ended with the accuracy gate, their set-up included
    setup_spent_s: dict[tuple[str, str], float] = field(default_factory=dict)
    outcomes: dict[Candidate, Trial] = field(default_factory=dict)

    # -- the truth

    def candidates(self) -> list[Candidate]:
        return [Candidate(*family, START_BUDGET, CORES, 1) for family in self.families]

    def true_rate(self, candidate: Candidate) -> float:
        truth = self.families[candidate.family]
        away = math.log2(candidate.max_batch_tokens / truth.best_budget)
        split = {CORES: 0, CORES // 2: 1, 1: 2}[candidate.workers]
        return truth.rate * (1 - truth.budget_loss) ** (away**2) * truth.splits[split]

    def can_run(self, candidate: Candidate) -> bool:
        truth = self.families[candidate.family]
        fits = self.max_tokens is None or candidate.max_batch_tokens <= self.max_tokens
        return fits and truth.error is None and truth.is_accurate

    def everything(self) -> Iterator[Candidate]:
        """All families with all knobs."""
        for candidate in self.candidates():
            seen, waiting = {candidate}, [candidate]
            while waiting:
                for other in neighbours(waiting.pop(), CORES, BUDGETS):
                    if other not in seen:
                        seen.add(other)
                        waiting.append(other)
            yield from sorted(seen, key=repr)

    def true_total_s(self, candidate: Candidate, job: JobSize) -> float:
        """With its set-up behind it."""
        return job.tokens / self.true_rate(candidate) if self.can_run(candidate) else math.inf

    # -- the workbench

    def clock(self) -> float:
        return self.now

    def predict(self, candidate: Candidate) -> Prediction:
        truth = self.families[candidate.family]
        default = replace(candidate, max_batch_tokens=START_BUDGET, workers=CORES, threads=1)
        rate = self.true_rate(default) if truth.predicted_rate is None else truth.predicted_rate
        gate_s = self.gate_s if truth.is_gated and candidate.family not in self.judged else 0.0
        timing_s = WARM_UP_S + SAMPLE_TOKENS / rate if rate else 0.0
        return Prediction(rate, self._setup_s(candidate), timing_s + gate_s, gate_s)

    def _setup_s(self, candidate: Candidate) -> float:
        truth = self.families[candidate.family]
        if candidate.family in self.loaded:
            return 0.0
        has_sibling = any(backend == candidate.backend for backend, _ in self.loaded)
        return truth.later_setup_s if has_sibling and truth.later_setup_s is not None else truth.setup_s

    def measure(self, candidate: Candidate, give_up_below: float | None) -> Trial:
        assert candidate not in self.measured, f"{candidate} was tried twice"
        self.measured.append(candidate)
        begin, gate_s = self.now, self.predict(candidate).gate_s
        trial = self.outcomes[candidate] = self._trial(candidate, give_up_below)
        if gate_s:
            self.gated_s += self.now - begin
        return trial

    def _trial(self, candidate: Candidate, give_up_below: float | None) -> Trial:
        truth = self.families[candidate.family]
        setup_s = self._setup_s(candidate)
        self.now += setup_s
        self.setup_spent_s[candidate.family] = self.setup_spent_s.get(candidate.family, 0.0) + setup_s
        if truth.error is not None:
            return Trial(None, setup_s, error=truth.error)
        self.loaded.add(candidate.family)
        if self.max_tokens is not None and candidate.max_batch_tokens > self.max_tokens:
            self.now += WARM_UP_S
            return Trial(None, setup_s, error=f"{candidate.max_batch_tokens} tokens do not fit into memory")
        rate = self.true_rate(candidate) * self._error_of(candidate)
        if give_up_below is not None and rate < CLEARLY * give_up_below:
            self.now += WARM_UP_S + EARLY_SHARE * SAMPLE_TOKENS / rate
            return Trial(rate, setup_s, is_beaten=True)
        self.now += WARM_UP_S + SAMPLE_TOKENS / rate
        return Trial(rate, setup_s, accuracy=self._verdict(candidate), peak_bytes=1_000 * candidate.max_batch_tokens)

    def _verdict(self, candidate: Candidate) -> Verdict | None:
        truth = self.families[candidate.family]
        if not truth.is_gated or candidate.family in self.judged:
            return None
        self.now += self.gate_s
        self.judged.add(candidate.family)
        return Verdict(truth.is_accurate, "within the tolerance" if truth.is_accurate else "0.3 beyond the tolerance")

    def _error_of(self, candidate: Candidate) -> float:
        """The same for a way each time it is asked."""
        random = np.random.default_rng([self.seed, zlib.crc32(repr(candidate).encode())])
        return 1 + self.noise * float(random.uniform(-1, 1))


def random_machine(seed: int, noise: float = 0.0, prior_error: float = 1.0) -> SimulatedMachine:
    """Some backends and precisions; predictions are off by up to prior_error either way."""
    random = np.random.default_rng(seed)
    families: dict[tuple[str, str], Family] = {}
    for backend, setup_s in (("torch", 1.5), ("openvino", 15.0), ("onnx", 20.0)):
        for precision, gain in (("fp32", 1.0), ("bf16", 1.8), ("int8", 2.6)):
            if (backend, precision) != ("torch", "fp32") and random.random() < 0.25:
                continue
            splits = np.append(random.uniform(0.9, 1.0, 2), 1.0)
            truth = Family(
                rate=2_000 * gain * float(np.exp(random.normal(0, 0.5))),
                setup_s=float(setup_s * random.uniform(0.5, 2) * (4 if precision == "int8" else 1)),
                best_budget=int(START_BUDGET * 2.0 ** random.integers(-2, 3)),
                budget_loss=float(random.uniform(0.01, 0.06)),
                splits=tuple(random.permutation(splits).tolist()),
                is_gated=precision != "fp32",
                is_accurate=bool(precision == "fp32" or random.random() < 0.8),
                error="no such operator" if backend != "torch" and random.random() < 0.1 else None,
            )
            alone = SimulatedMachine({(backend, precision): truth})
            rate = alone.true_rate(alone.candidates()[0]) * prior_error ** float(random.uniform(-1, 1))
            families[backend, precision] = replace(truth, predicted_rate=rate)
    return SimulatedMachine(families, noise=noise, seed=seed, gate_s=float(random.uniform(0.5, 20)))
