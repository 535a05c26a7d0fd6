"""Which way a job takes: the default where nothing else can repay its trial, else the fastest of those measured."""

from __future__ import annotations

import importlib.util
import time
from dataclasses import replace
from typing import NamedTuple

from packhorse.errors import ModelError, PackhorseError
from packhorse.generation import QUANTIZED
from packhorse.loading import remembering
from packhorse.loading.loader import Loader
from packhorse.loading.workbench import RealWorkbench
from packhorse.loading.writing import choose_writing
from packhorse.plans import Alternative, Forecast, Plan
from packhorse.tuning.candidates import Candidate
from packhorse.tuning.gate import MIN_JOB_ROWS, Verdict
from packhorse.tuning.measure import Clock
from packhorse.tuning.precision import candidates, first_choice
from packhorse.tuning.search import Decision, search

OTHERS = ("openvino", "onnx")  # beside torch, where their packages are installed
WIDENED = ("int4", "fp8")  # weights that a library makes 16 bits wide again before it multiplies, where it has to


class Chosen(NamedTuple):
    loader: Loader
    plan: Plan


class Texts(NamedTuple):
    """The columns that hold them."""

    column: str
    pair_column: str | None


def choose(
    loader: Loader, total_rows: float, texts: Texts, is_job: bool = True, clock: Clock = time.perf_counter
) -> Chosen:
    """The plan of a job whose sample the loader has seen, and the loader that carries it out; all other models are
    freed. is_job: other backends come into question, and what was found is kept for later jobs.

    Raises ModelError where nothing works, or where --tolerance was given for a precision asked for by name and is
    exceeded.
    """
    if loader.description.writes:
        return Chosen(loader, choose_writing(loader, total_rows, texts.column, clock))
    choice = _Choice(loader, total_rows, texts, is_job, clock)
    try:
        return choice.made()
    finally:
        choice.free()


class _Choice:
    def __init__(self, loader: Loader, total_rows: float, texts: Texts, is_job: bool, clock: Clock) -> None:
        self._clock = clock
        self._loader, self._texts, self._is_job = loader, texts, is_job
        self._settings = loader.settings
        supported = loader.supported_precisions()
        self._job = loader.material.job_size(total_rows)
        self._default = loader.candidate(first_choice(self._settings, supported, loader.own_precision))
        self._slow = (
            ""
            if loader.own_precision or self._default.precision in (*supported, *WIDENED)
            else f"{loader.device} has no instructions for {self._default.precision}: expect it to be 10-30x slower "
            "than fp32"
        )
        self._cores = loader.workers * loader.threads if self._settings.tune == "full" else 1
        self._loaders = {loader.backend_name: loader}
        self._kept = loader
        self._unfit: list[Alternative] = []

    def made(self) -> Chosen:
        s, rows = self._settings, self._loader.material.rows.num_rows
        if self._loader.own_precision:
            p = self._loader.own_precision
            return self._as_default(f"{p}: the folder's own graph has these weights")
        if s.exact:
            return self._as_default("--exact: fp32, one thread")
        if self._loader.backend_name == "null":
            return self._as_default()
        if s.precision not in ("auto", "fp32") or self._default.precision != "fp32":
            return self._asked()
        mode = s.tune
        if mode == "off" or not rows or (mode == "quick" and self._job.rows < MIN_JOB_ROWS):
            return self._as_default(*self._why_fp32(mode))
        return self._searched()

    def free(self) -> None:
        """Models of the ways not taken."""
        for other in self._loaders.values():
            if other is not self._kept:
                other.drop(other.loaded)

    def _bench(self) -> RealWorkbench:
        return RealWorkbench(self._loaders, self._default, self._job.tokens, self._clock)

    # -- without a search

    def _as_default(self, *notes: str, accuracy: Verdict | None = None) -> Chosen:
        self._loader.drop(self._loader.loaded - {self._default.precision})
        figures = accuracy._asdict() if accuracy else None
        plan = self._loader.plan(
            self._default, *self._texts, tuple(filter(None, (self._slow, *notes))), accuracy=figures,
            forecast=Forecast(rows=self._job.rows, tokens=self._job.tokens, sample_rows=self._sample_rows),
        )  # fmt: skip
        return Chosen(self._loader, plan)

    def _why_fp32(self, mode: str) -> tuple[str, ...]:
        lower = [p for p in _precisions(self._loader) if p != "fp32"]
        if not lower or not self._loader.material.rows.num_rows:
            return ()
        if mode == "off":
            return (f"fp32: with --tune off {lower[0]} is not compared with it",)
        return (f"fp32: {self._job.rows:,.0f} rows are too few to check {lower[0]} against it",)

    @property
    def _sample_rows(self) -> int:
        return self._loader.material.num_seen

    def _asked(self) -> Chosen:
        """A precision asked for by name is compared with fp32 too, where the job is long enough to pay for it."""
        s, precision = self._settings, self._default.precision
        if s.tune == "off" and s.tolerance is None:
            return self._as_default(f"with --tune off {precision} is not compared with fp32")
        if s.tolerance is None and (self._job.rows < MIN_JOB_ROWS or not self._loader.material.rows.num_rows):
            return self._as_default()
        try:
            verdict = self._bench().judge(self._default)
        except ModelError as error:
            return self._as_default(f"{precision} was not compared with fp32: {error}")
        if verdict.passed:
            return self._as_default(f"{precision} agrees with fp32; {verdict.finding}", accuracy=verdict)
        if s.tolerance is not None:
            raise ModelError(
                f"--precision {precision} does not agree with fp32: {verdict.finding}. Choose --precision fp32 or a "
                "higher --tolerance; without --tolerance it is used all the same, and the difference reported"
            )
        note = f"{precision} was asked for, but DOES NOT AGREE with fp32; {verdict.finding}"
        return self._as_default(note, accuracy=verdict)

    # -- with one

    def _searched(self) -> Chosen:
        key = remembering.key(self._loader, self._job, self._is_job)
        remembered = self._remembered(key)
        if remembered is not None:
            return remembered
        bench = self._bench()
        if not bench.cost.per_token:
            return self._as_default("what this model costs is not known: no other way was looked at")
        self._loaders, ways, self._unfit = families(self._loader, self._is_job)
        bench.add(self._loaders)
        asked = self._settings.max_batch_tokens or self._settings.batch_size
        budgets = (asked, asked) if asked else bench.budgets()
        if not asked:
            ways = [_within(way, budgets) for way in ways]
            bench.default = self._default = _within(self._default, budgets)
        mode = self._settings.tune
        decision = search(ways, self._default, self._job, bench, mode, cores=self._cores, budgets=budgets)
        if decision.source == "measured":
            self._remember(key, decision)
        return self._taken(decision)

    def _taken(self, decision: Decision, source: str | None = None) -> Chosen:
        chosen = decision.chosen
        self._kept = loader = self._loader.sibling(chosen.backend) if source else self._loaders[chosen.backend]
        loader.drop(loader.loaded - {chosen.precision})
        first, *others = decision.alternatives
        forecast = Forecast(
            rows=self._job.rows, tokens=self._job.tokens, sample_rows=self._sample_rows,
            tokens_per_s=decision.chosen_rate, total_s=decision.chosen_total_s, tuned_s=decision.tuned_s,
            source=source or decision.source,
        )  # fmt: skip
        plan = loader.plan(
            chosen, *self._texts, _notes(first, others), accuracy=first.accuracy,
            alternatives=(first, *others, *self._unfit), forecast=forecast,
        )  # fmt: skip
        return Chosen(loader, plan)

    # -- what an earlier job found

    def _remember(self, key: str, decision: Decision) -> None:
        first = decision.alternatives[0]
        found = {first.name: Verdict(**first.accuracy)} if first.accuracy else {}
        remembering.remember(key, self._settings.tune, decision, self._loader.material.rows, found)

    def _remembered(self, key: str) -> Chosen | None:
        """The decision of an earlier job of this kind; a lower precision or another backend is compared anew with fp32
        on rows that it was not tried on."""
        decision = remembering.recall(key, self._settings.tune)
        if decision is None:
            return None
        rows, chosen = self._loader.material.rows, decision.chosen
        verdict = remembering.verdict(key, chosen, rows)
        if chosen.family != self._default.family and verdict is None:
            self._loaders[chosen.backend] = self._loader.sibling(chosen.backend)
            verdict = self._bench().judge(chosen)
            if not verdict.passed:
                return None
            remembering.remember(key, self._settings.tune, decision, rows, {chosen.name: verdict})
        return self._taken(remembering.for_job(decision, self._job, verdict), "cached")


def families(loader: Loader, is_job: bool = True) -> tuple[dict[str, Loader], list[Candidate], list[Alternative]]:
    """Loaders by backend, the ways that come into question, one for each backend and precision, and backends that are
    installed but cannot do it."""
    loaders, found, unfit = {loader.backend_name: loader}, [loader.candidate(p) for p in _precisions(loader)], []
    if is_job and _may_compile(loader):
        found += [_compiled(loader, way) for way in found if way.precision not in QUANTIZED]
    for name in _others(loader) if is_job else ():
        try:
            other = loaders[name] = loader.sibling(name)
        except PackhorseError as error:
            unfit.append(_failed(name, str(error)))
            continue
        found += [other.candidate(p) for p in _precisions(other)]
    return loaders, found, unfit


def _precisions(loader: Loader) -> list[str]:
    if loader.own_precision or loader.settings.exact:
        return [loader.own_precision or "fp32"]
    with_quantized = loader.settings.tolerance is not None or loader.settings.tune == "full"
    return candidates(loader.settings, loader.device, loader.supported_precisions(), with_quantized)


def _others(loader: Loader) -> list[str]:
    """Backends that could run what torch runs. A kind of attention or batching asked for is torch's alone; a lower
    precision asked for is taken as it is, and that differs between backends."""
    s = loader.settings
    is_open = (
        s.backend == "auto"
        and s.attention == "auto"
        and s.batching == "auto"
        and s.batch_size is None
        and not s.compile
        and not loader.placement.is_split
    )
    if loader.backend_name != "torch" or not is_open or s.exact or s.precision not in ("auto", "fp32"):
        return []
    return [name for name in OTHERS if is_installed("onnxruntime" if name == "onnx" else name)]


def _may_compile(loader: Loader) -> bool:
    """Not known to be wanted or not, and nothing else was asked for that compiled code does not have."""
    s = loader.settings
    is_open = s.compile is None and s.attention == "auto" and s.batching == "auto" and not s.exact
    is_whole = not loader.own_precision and not loader.placement.is_split
    return is_open and is_whole and bool(loader.backend.can_compile(loader.device))


def _compiled(loader: Loader, way: Candidate) -> Candidate:
    workers, threads = loader.compiled_split
    return replace(way, workers=workers, threads=threads, compiled=True)


def _within(way: Candidate, budgets: tuple[int, int]) -> Candidate:
    return replace(way, max_batch_tokens=min(way.max_batch_tokens, budgets[1]))


def is_installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def _notes(chosen: Alternative, others: list[Alternative]) -> tuple[str, ...]:
    """Why this precision, and which ways the others lost to."""
    if chosen.accuracy:
        return (f"{chosen.precision}: {chosen.name} agrees; {chosen.accuracy['finding']}",)
    rejected = [(a.precision, a.accuracy["finding"]) for a in others if a.status == "inaccurate" and a.accuracy]
    if rejected:
        precision, finding = rejected[0]
        return (f"{chosen.precision}: {precision} does not agree; {finding}",)
    lower = next((a for a in others if a.backend == chosen.backend and a.precision != chosen.precision), None)
    return (f"{chosen.precision}: {lower.precision} was not taken: {lower.reason}",) if lower and lower.reason else ()


def _failed(backend: str, reason: str) -> Alternative:
    return Alternative(
        backend=backend, precision="fp32", max_batch_tokens=0, workers=1, threads=1, status="failed", reason=reason
    )
