"""Which way to run a job: the one with the least total time, its set-up included, at a bounded cost of finding out.

Rates are predicted first; a few ways are then tried on rows of the job, best prediction first.

- The default is measured before any other way, so that a measurement is never compared with a guess.
- A prediction is multiplied by measured / predicted of its backend: what slows a backend down on this machine slows it
  down in all precisions. Of several such ratios the largest counts, for a precision without instructions says nothing
  of the others. All of it is computed again after each trial, so that a surprise changes what is tried next.
- quick: exploration stays within QUICK_SHARE of the run. The set-ups of the default and of the best way are none: who
  takes them at once pays them too. So, as far as costs are as predicted, a tuned job is at most that much longer than
  the best way alone. The accuracy gate comes on top where it promises to repay itself: `_is_investment`.
- full: whatever is not hopeless is tried, then the knobs of all families that are near the best.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, Protocol

from packhorse.errors import ModelError
from packhorse.plans import Alternative
from packhorse.tuning.candidates import Candidate, JobSize, Prediction, Status, Trial, Trials, neighbours

Mode = Literal["off", "quick", "full"]
Source = Literal["default", "predicted", "measured"]

QUICK_SHARE = 0.03  # of the run of the best way known, for exploration
# Times its prediction that a way may reach: beyond it, it is hopeless. Priors come from one model on one machine;
# torch's own linear layers missed a good one by 2.2. On simulated machines whose priors were off by up to 3 either way,
# jobs of a day took 1.04 times the least time with it and 1.17 without; where priors were right it cost 0.5%.
PRIOR_ERROR = 3.0
# A lower precision that fails the gate costs all of it and saves nothing: at 2, trying breaks even where every second
# one fails.
GATE_REPAYS = 2.0
CHEAP_SETUP = 0.1  # of what would be saved: a conversion that costs more is exploration, not only a gate
NOISE = 0.03  # assumed of two trials of one way; a knob has to gain more
# Knobs gained 10% at most on a CPU (token budget 9%, workers x threads 3%); above it for devices not measured.
KNOBS_GAIN = 1.25
BUDGETS = (256, 262_144)  # token budgets that make sense on any device


class Workbench(Protocol):
    """The machine on which candidates are tried. `predict` takes no time worth counting."""

    def clock(self) -> float: ...  # seconds

    def predict(self, candidate: Candidate) -> Prediction:
        """The rate from priors alone, whatever was measured meanwhile; the set-up as it is still to be paid now."""

    def measure(self, candidate: Candidate, give_up_below: float | None) -> Trial:
        """Sets up if needed, warms up, runs a stratified sample of the job. May stop early, is_beaten, once its rate
        is clearly below give_up_below real tokens/s. What cannot run is a Trial with an error."""


@dataclass(frozen=True)
class Decision:
    """What was chosen, what else was considered, and what finding out cost."""

    chosen: Candidate
    alternatives: tuple[Alternative, ...]  # the chosen one first, then by total time
    tuned_s: float  # from begin to end: set-ups, the default's too, and trials
    source: Source  # default: there was no choice; predicted: no trial would pay
    chosen_rate: float | None  # real tokens/s, predicted where not measured; None where neither is known
    chosen_total_s: float | None  # set-up still to be paid, and all rows

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        listed = [alternative.model_dump(mode="json") for alternative in self.alternatives]
        return {**asdict(self), "alternatives": listed}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Decision:
        """What to_json gave. Raises ValueError for anything else."""
        try:
            listed = tuple(Alternative(**alternative) for alternative in values["alternatives"])
            return cls(**{**values, "chosen": Candidate(**values["chosen"]), "alternatives": listed})
        except (KeyError, TypeError) as error:
            raise ValueError(f"not a decision: {error}") from error


def search(
    candidates: Sequence[Candidate],
    default: Candidate,
    job: JobSize,
    workbench: Workbench,
    mode: Mode,
    *,
    cores: int | None = None,
    budgets: tuple[int, int] = BUDGETS,
) -> Decision:
    """The way to run a job.

    candidates: one a family, with default knobs. default: one of them, taken where nothing is tried. cores: those that
    workers and threads may divide, the default's where None; 1 leaves them as they are. budgets: the lowest legal
    token budget and the highest that fits. Raises ModelError where no candidate works.
    """
    if default not in candidates or len({c.family for c in candidates}) < len(candidates):
        raise ValueError("candidates: one a family, the default among them")
    cores = default.workers * default.threads if cores is None else cores
    trials = Trials(candidates, default, job, workbench.predict)
    tuning = _Search(trials, workbench, mode, lambda candidate: neighbours(candidate, cores, budgets))
    if mode == "quick":
        tuning.quick()
    elif mode == "full":
        tuning.full()
    return tuning.decision()


class _Search:
    """What is tried next, and what came of it."""

    def __init__(
        self,
        trials: Trials,
        workbench: Workbench,
        mode: Mode,
        variations: Callable[[Candidate], tuple[Candidate, ...]],
    ) -> None:
        self._trials, self._workbench, self._mode, self._variations = trials, workbench, mode, variations
        self._begin = workbench.clock()
        self._explored_s = 0.0  # trials, without set-ups and what gates repay
        self._setups_s: dict[Candidate, float] = {}

    def quick(self) -> None:
        while (candidate := self._next_quick()) is not None:
            self._try(candidate)
        if self._trials.best is not None:
            self._climb(self._trials.best, lambda c: self._knobs_could_repay(self._trials.prediction(c).cost_s))

    def full(self) -> None:
        self._try(self._trials.default)
        while (candidate := next((c for c in self._trials.untried() if not self._is_hopeless(c)), None)) is not None:
            self._try(candidate)
        if self._trials.best is not None:
            self._climb(self._trials.best, lambda _: True)
        families = [candidate for candidate in self._trials.listed if candidate in self._trials]
        for candidate in sorted(families, key=self._trials.total_s):
            if self._is_near_the_best(candidate):
                self._climb(candidate, lambda _: True)

    def _next_quick(self) -> Candidate | None:
        """None where nothing more repays its trial. While nothing works everything does: best_total_s is infinite."""
        worth = next(filter(self._is_worth_trying, self._trials.untried()), None)
        if self._trials or (worth is None and not self._knobs_are_worth_trying()):
            return worth
        return self._trials.default

    def _climb(self, top: Candidate, may_try: Callable[[Candidate], bool]) -> None:
        """Turns one knob at a time, for as long as it gains more than noise."""
        better: Candidate | None = top
        while better is not None:
            top, better = better, self._better_variation(better, may_try)
            if better is not None:
                self._trials.accept(better)

    def _better_variation(self, top: Candidate, may_try: Callable[[Candidate], bool]) -> Candidate | None:
        for variation in self._variations(top):
            if variation not in self._trials and may_try(variation):
                self._try(variation)
                gain = self._trials.rate(variation) / self._trials.rate(top)
                if gain >= 1 + NOISE:
                    return variation
        return None

    def _try(self, candidate: Candidate) -> None:
        prediction, is_investment = self._trials.prediction(candidate), self._is_investment(candidate)
        gate_share = prediction.gate_s / prediction.trial_s if is_investment else 0.0
        best = self._trials.best
        # at this rate it takes as long as the best even with all of its set-up behind it
        to_beat = None if best is None else self._trials.job.tokens / max(self._trials.best_total_s, 1e-9)
        begin = self._workbench.clock()
        trial = self._workbench.measure(candidate, to_beat)
        elapsed_s = self._workbench.clock() - begin
        self._explored_s += (1 - gate_share) * (elapsed_s - trial.setup_s)
        self._setups_s[candidate] = trial.setup_s
        self._trials.add(candidate, trial)

    # -- what is worth a trial

    def _is_worth_trying(self, candidate: Candidate) -> bool:
        if candidate == self._trials.default or self._trials.has_narrower(candidate):
            return False
        cost_s, job = self._cost_s(candidate), self._trials.job
        could_repay = self._trials.best_total_s - job.run_s(PRIOR_ERROR * self._trials.rate(candidate)) > cost_s
        return (could_repay and cost_s <= self._left_s) or self._is_investment(candidate)

    def _is_investment(self, candidate: Candidate) -> bool:
        """A precision that is cheap to set up, and promises to save GATE_REPAYS times all that trying it costs."""
        prediction, saving_s = self._trials.prediction(candidate), self._saving_s(candidate)
        is_cheap = prediction.setup_s <= CHEAP_SETUP * saving_s
        return prediction.gate_s > 0 and is_cheap and saving_s >= GATE_REPAYS * self._cost_s(candidate)

    def _knobs_are_worth_trying(self) -> bool:
        """Whether the default and one variation of it fit."""
        default = self._trials.default
        return bool(self._variations(default)) and self._knobs_could_repay(2 * self._trials.prediction(default).trial_s)

    def _knobs_could_repay(self, cost_s: float) -> bool:
        run_s = self._trials.job.run_s(self._trials.rate(self._trials.best or self._trials.default))
        return cost_s <= self._left_s and cost_s < run_s * (1 - 1 / KNOBS_GAIN)

    def _is_hopeless(self, candidate: Candidate) -> bool:
        is_possible = self._trials.rate(candidate) > 0
        return not is_possible or self._trials.total_s(candidate, PRIOR_ERROR) > self._trials.best_total_s

    def _is_near_the_best(self, candidate: Candidate) -> bool:
        within_reach = self._trials.total_s(candidate, KNOBS_GAIN) < self._trials.best_total_s
        return within_reach and self._trials.is_usable(candidate)

    def _cost_s(self, candidate: Candidate) -> float:
        """Of trying it, and the default before it."""
        before = 0.0 if self._trials else self._trials.prediction(self._trials.default).trial_s
        return self._trials.prediction(candidate).cost_s + before

    def _saving_s(self, candidate: Candidate) -> float:
        """Against the best way known, before all costs; 0 where neither is possible."""
        saving_s = self._trials.best_total_s - self._trials.job.run_s(self._trials.rate(candidate))
        return 0.0 if math.isnan(saving_s) else saving_s

    @property
    def _left_s(self) -> float:
        """Of what may be spent: the set-ups of the default and of the best way now are no exploration."""
        paid = {self._trials.default, self._trials.best}
        setups_s = sum(setup_s for candidate, setup_s in self._setups_s.items() if candidate not in paid)
        return QUICK_SHARE * self._trials.best_total_s - self._explored_s - setups_s

    # -- the outcome

    def decision(self) -> Decision:
        chosen = self._chosen()
        others = sorted((c for c in self._trials.listed if c != chosen), key=self._trials.total_s)
        source: Source = "predicted" if others and self._mode != "off" else "default"
        total_s = self._trials.total_s(chosen)
        return Decision(
            chosen=chosen,
            alternatives=tuple(self._alternative(c, chosen) for c in (chosen, *others)),
            tuned_s=self._workbench.clock() - self._begin,
            source="measured" if self._trials else source,
            chosen_rate=self._trials.rate(chosen) or None,
            chosen_total_s=total_s if math.isfinite(total_s) else None,
        )

    def _chosen(self) -> Candidate:
        """Raises ModelError where nothing works."""
        if not self._trials:
            return self._trials.default
        best = self._trials.best
        if best is None:
            reasons = "; ".join(f"{c.name}: {self._status(c)[1]}" for c in self._trials.listed)
            raise ModelError(f"no way to run this model works here. {reasons}")
        return best

    def _alternative(self, candidate: Candidate, chosen: Candidate) -> Alternative:
        if candidate == chosen:
            return self._trials.alternative(candidate, "chosen", "")
        return self._trials.alternative(candidate, *self._status(candidate))

    def _status(self, candidate: Candidate) -> tuple[Status, str]:
        trial, verdict = self._trials.get(candidate), self._trials.verdict(candidate)
        if trial is None:
            return "not_tried", self._why_not_tried(candidate)
        if trial.error is not None or not (trial.tokens_per_s or verdict):
            return "failed", trial.error or "no rate was measured"
        if verdict is not None and not verdict.passed:
            return "inaccurate", verdict.finding
        early = "stopped early, at " if trial.is_beaten else ""
        is_noise = self._trials.total_s(candidate) <= self._trials.best_total_s
        noise = f", no {NOISE:.0%} faster: noise" if is_noise else ""
        return "beaten", f"{early}{trial.tokens_per_s or 0:,.0f} tokens/s: {self._against_best(candidate)}{noise}"

    def _why_not_tried(self, candidate: Candidate) -> str:
        if self._mode == "off":
            return "--tune off"
        if self._trials.rate(candidate) <= 0:
            return "not possible here"
        if self._mode == "full":
            return f"predicted to take {self._against_best(candidate)}, too far to be worth a trial"
        if self._saving_s(candidate) <= 0:
            return f"predicted to take {self._against_best(candidate)}"
        return self._too_dear(candidate)

    def _too_dear(self, candidate: Candidate) -> str:
        setup_s, cost_s = self._trials.prediction(candidate).setup_s, self._cost_s(candidate)
        setup, trial = _seconds(setup_s), _seconds(cost_s - setup_s)
        if self._saving_s(candidate) <= cost_s:
            return f"would save {_seconds(self._saving_s(candidate))}, costs {setup} to set up and {trial} to try"
        allowance_s = QUICK_SHARE * self._trials.best_total_s
        spent = f", {_seconds(allowance_s - self._left_s)} of it spent" if self._left_s < allowance_s else ""
        more = f"more than {QUICK_SHARE:.0%} of the run ({_seconds(allowance_s)}{spent}); --tune full tries it"
        return f"its set-up of {setup} and trial of {trial} are {more}"

    def _against_best(self, candidate: Candidate) -> str:
        return f"{_seconds(self._trials.total_s(candidate))} against {_seconds(self._trials.best_total_s)}"


def _seconds(elapsed_s: float) -> str:
    return f"{elapsed_s:,.0f} s" if elapsed_s >= 10 else f"{elapsed_s:.2g} s"
