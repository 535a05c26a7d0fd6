"""Which engine writes a job, on machines whose engines take a known time: loaders over a null model that "writes" on a
clock of its own."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from packhorse.backends import null
from packhorse.backends.null.generator import NullGenerator
from packhorse.config import EngineConfig
from packhorse.data import Int64s, offsets_of
from packhorse.errors import DeviceOutOfMemoryError, InterruptedRunError, UsageError
from packhorse.explaining import explain
from packhorse.generation import Decoding, Generated, Prompts
from packhorse.jobs import beginning
from packhorse.load_request import LoadRequest
from packhorse.loading import Loader, engines
from packhorse.loading.choosing import Texts, choose
from packhorse.plans import Alternative, Plan
from packhorse.stages import OnStep
from tests.models import save_null_model
from tests.null.runs import parts, run, run_until_stopped

SAMPLE = [" ".join(["good film"] * (1 + i % 40)) for i in range(600)]  # 4 to 82 tokens
NEW, ROWS = 64, 100_000.0
STEP_RATE = 1_000.0  # tokens/s of a step with all rows, whatever their number
LIBRARY = "for what no other engine can do"
FIT: dict[str, str | None] = {"continuous": None, "static": None, "paged": None, "generate": LIBRARY}


class Machine:
    """rates: tokens/s that an engine writes in its first trial, its second, ...; the last one of them from then on."""

    def __init__(self, rates: dict[str, tuple[float, ...]], fit: Mapping[str, str | None] = FIT) -> None:
        self.rates, self.fit = rates, fit
        self.refused: dict[str, Exception] = {}
        self.setup_s: dict[str, float] = {}
        self.now = 0.0
        self.trials: list[tuple[str, Prompts, list[int], int, int]] = []  # engine, prompts, lengths, rows, prefill
        self.jobs: list[str] = []  # engines of calls whose outputs end by themselves

    def clock(self) -> float:
        return self.now


class Several(NullGenerator):
    attention = "packed"

    def __init__(self, machine: Machine, request: LoadRequest) -> None:
        assert request.decoding is not None
        super().__init__(request.decoding, None)
        self._machine = machine
        self._lengths: Int64s | None = None
        self._first = next(name for name, why in machine.fit.items() if why is None)
        self.write_with(request.engine)

    def engines(self) -> Mapping[str, str | None]:
        return self._machine.fit

    def write_with(self, engine: str) -> None:
        if engine in self._machine.refused:
            raise self._machine.refused[engine]
        self.engine = self._first if engine == "auto" else engine

    def setup_s(self, engine: str) -> float:
        return self._machine.setup_s.get(engine, 0.0)

    @contextlib.contextmanager
    def forced(self, lengths: Int64s) -> Iterator[None]:
        self._lengths = lengths
        yield
        self._lengths = None

    def generate(self, prompts: Prompts, max_rows: int, max_prefill_tokens: int, on_step: OnStep) -> Generated:
        m = self._machine
        if self._lengths is None:
            m.jobs.append(self.engine)
            for _ in range(NEW):
                m.now += prompts.num_rows / STEP_RATE
                on_step(0, prompts.num_rows)
            return super().generate(prompts, max_rows, max_prefill_tokens, lambda finished, tokens: None)
        lengths = self._lengths[prompts.keys.astype(np.int64)]
        rates = m.rates[self.engine]
        if lengths.max() > engines.WARM_UP_TOKENS:
            before = sum(name == self.engine for name, *_ in m.trials)
            m.trials.append((self.engine, prompts, lengths.tolist(), max_rows, max_prefill_tokens))
        else:
            before = 0
        for length in lengths.tolist():
            m.now += length / rates[min(before, len(rates) - 1)]
            on_step(1, length)
        zeros = np.zeros(len(lengths))
        return Generated(
            np.zeros(int(lengths.sum()), np.int32), offsets_of(lengths), zeros.astype(np.int8), zeros.astype(np.int32)
        )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_null_model(tmp_path / "writer", architecture="LlamaForCausalLM", max_length=512)


Planned = tuple[Plan, Loader]


def planned(
    monkeypatch: pytest.MonkeyPatch, folder: Path, machine: Machine, rows: float = ROWS, **settings: Any
) -> Planned:
    monkeypatch.setattr(null, "load", lambda request: Several(machine, request))
    config = EngineConfig(model=str(folder), backend="null", **{"max_new_tokens": NEW, "tune": "quick"} | settings)
    loader = Loader(config)
    loader.see(list(SAMPLE), None)
    return choose(loader, rows, Texts("text", None), clock=machine.clock).plan, loader


def by_engine(plan: Plan) -> dict[str | None, Alternative]:
    return {a.engine: a for a in plan.alternatives if a.engine is not None}


def test_the_faster_engine_writes_and_the_other_ones_figures_stay(
    monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    machine = Machine({"continuous": (100.0,), "static": (130.0,)})
    plan, loader = planned(monkeypatch, folder, machine)
    assert (plan.engine, loader.engine, plan.batching) == ("static", "static", "padded")
    found = by_engine(plan)
    assert list(found) == ["static", "continuous", "paged", "generate"]
    assert {n: a.status for n, a in found.items()} == {
        "static": "chosen", "continuous": "beaten", "paged": "not_tried", "generate": "not_tried"
    }  # fmt: skip
    assert plan.forecast is not None
    assert found["static"].measured_tokens_per_s == pytest.approx(130.0)
    assert plan.forecast.tokens_per_s == pytest.approx(130.0)
    assert found["continuous"].measured_tokens_per_s == pytest.approx(100.0)
    assert "0.77 times" in found["continuous"].reason and "--tune full" in found["paged"].reason
    assert found["generate"].reason == LIBRARY
    assert any(note.startswith("static instead of continuous: 1.30 times") for note in plan.notes)
    assert plan.forecast.tuned_s == pytest.approx(machine.now)
    steps = [a for a in plan.alternatives if a.engine is None]
    assert steps[0].status == "chosen" and steps[0].measured_tokens_per_s == pytest.approx(STEP_RATE)
    assert found["static"].rows_at_once == plan.batch_size == steps[0].rows_at_once


def test_all_engines_do_the_same_work_of_mixed_prompts_and_outputs(
    monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    machine = Machine({"continuous": (100.0,), "static": (90.0,), "paged": (95.0,)})
    plan, _ = planned(monkeypatch, folder, machine, tune="full", batch_size=32)
    assert [name for name, *_ in machine.trials] == ["continuous", "static", "paged"]
    assert plan.engine == "continuous"
    (_, prompts, lengths, rows, prefill), *others = machine.trials
    for _, same_prompts, same_lengths, same_rows, _ in others:
        assert np.array_equal(same_prompts.tokens.ids, prompts.tokens.ids)
        assert (same_lengths, same_rows) == (lengths, rows)
    assert rows == 32 and len(lengths) == engines.WAVES * 32
    assert max(lengths) > 4 * min(lengths) > 0 and len(set(lengths)) > max(lengths) // 2
    assert abs(np.corrcoef(np.arange(len(lengths)), lengths)[0, 1]) < 0.1  # prompts lie by length: outputs do not
    share = max(lengths) / NEW
    whole = [len(text.split()) + 2 for text in SAMPLE]
    assert max(prompts.tokens.lengths) == np.ceil(max(whole) * share) and len(set(prompts.tokens.lengths.tolist())) > 5
    static_prefill = machine.trials[1][-1]
    assert static_prefill == int(prefill * share)  # as many prompts a batch as in the job


@pytest.mark.parametrize("rate", [90.0, 100.0, 104.0])
def test_within_the_margin_the_first_engine_stays(monkeypatch: pytest.MonkeyPatch, folder: Path, rate: float) -> None:
    plan, loader = planned(monkeypatch, folder, Machine({"continuous": (100.0,), "static": (rate,)}))
    assert plan.engine == loader.engine == loader.generator("fp32").engine == "continuous"
    beaten = by_engine(plan)["static"]
    assert beaten.status == "beaten" and beaten.measured_tokens_per_s == pytest.approx(rate)
    assert rate == 100.0 or ("less than 5%" in beaten.reason) == (rate > 100)


def test_a_win_has_to_be_seen_twice(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """The default's first time had noise in it."""
    plan, _ = planned(monkeypatch, folder, Machine({"continuous": (80.0, 100.0), "static": (101.0, 60.0)}))
    assert plan.engine == "continuous"
    assert by_engine(plan)["continuous"].measured_tokens_per_s == pytest.approx(100.0)


def test_a_slow_engine_is_given_up(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    machine = Machine({"continuous": (100.0,), "static": (1.0,)})
    plan, _ = planned(monkeypatch, folder, machine)
    slow = by_engine(plan)["static"]
    assert (plan.engine, slow.status, slow.measured_tokens_per_s) == ("continuous", "beaten", None)
    assert "given up" in slow.reason
    seconds = sum(machine.trials[0][2]) / 100.0
    longest = (max(machine.trials[0][2]) + engines.WARM_UP_TOKENS * engines.WARM_UP_ROWS) / 1.0
    assert machine.now < 100 + (1 + engines.GIVE_UP) * seconds + longest


@pytest.mark.parametrize(
    ("refusal", "status"),
    [(UsageError("--engine static: no"), "failed"), (DeviceOutOfMemoryError("no room"), "failed"),
     (RuntimeError("shapes"), "failed")],
)  # fmt: skip
def test_an_engine_that_fails_its_trial_is_listed(
    monkeypatch: pytest.MonkeyPatch, folder: Path, refusal: Exception, status: str
) -> None:
    machine = Machine({"continuous": (100.0,)})
    machine.refused["static"] = refusal
    plan, _ = planned(monkeypatch, folder, machine)
    assert plan.engine == "continuous"
    assert (by_engine(plan)["static"].status, by_engine(plan)["static"].reason) == (status, str(refusal))


def test_an_engine_whose_set_up_the_job_does_not_repay_is_not_tried(
    monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    """100,000 rows of 64 tokens at 1,000 tokens/s are 6,400 s, 3% of which are 192."""
    for setup_s, is_tried in ((190.0, True), (194.0, False)):
        machine = Machine({"continuous": (1_000.0,), "static": (2_000.0,)}, {"continuous": None, "static": None})
        machine.setup_s["static"] = setup_s
        plan, _ = planned(monkeypatch, folder, machine)
        found = by_engine(plan)["static"]
        assert (found.status == "chosen") == is_tried and bool(machine.trials) == is_tried
        assert is_tried or found.reason == "its set-up takes about 194 s, of a job of 6,400 s"


def test_what_is_unfit_is_listed_with_its_reason_and_not_tried(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    fit: dict[str, str | None] = {"continuous": "it has an encoder", "static": None, "paged": "no", "generate": LIBRARY}
    machine = Machine({}, fit)
    plan, _ = planned(monkeypatch, folder, machine, tune="full")
    assert plan.engine == "static" and not machine.trials
    assert {n: (a.status, a.reason) for n, a in by_engine(plan).items()} == {
        "static": ("chosen", ""), "continuous": ("not_tried", "it has an encoder"), "paged": ("not_tried", "no"),
        "generate": ("not_tried", LIBRARY),
    }  # fmt: skip


@pytest.mark.parametrize("settings", [{"tune": "off"}, {"engine": "static"}])
def test_nothing_is_tried_where_nothing_is_open(
    monkeypatch: pytest.MonkeyPatch, folder: Path, settings: dict[str, Any]
) -> None:
    monkeypatch.setattr("packhorse.loading.checking._check_writing", lambda *_: None)  # --engine belongs to torch
    machine = Machine({"continuous": (1.0,), "static": (100.0,)})
    plan, _ = planned(monkeypatch, folder, machine, **settings)
    assert plan.engine == settings.get("engine", "continuous")
    assert not machine.trials and not by_engine(plan)


def test_exact_takes_the_first_and_says_so(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    machine = Machine({"continuous": (1.0,), "static": (100.0,)})
    plan, _ = planned(monkeypatch, folder, machine, exact=True)
    assert plan.engine == "continuous" and not machine.trials
    assert "--exact" in by_engine(plan)["static"].reason


@pytest.mark.parametrize("rows", [64.0, 700.0, 3_000.0, 20_000.0, 1e6])
def test_trials_cost_a_small_share_of_the_job(monkeypatch: pytest.MonkeyPatch, folder: Path, rows: float) -> None:
    machine = Machine({"continuous": (100.0,), "static": (90.0,)})
    plan, _ = planned(monkeypatch, folder, machine, rows)
    written = sum(sum(lengths) for _, _, lengths, *_ in machine.trials)
    assert written <= 0.03 * rows * NEW
    assert bool(machine.trials) == (rows >= 3_000)
    if not machine.trials:
        assert f"continuous, without a trial of static: {rows:,.0f} rows are too few to repay it" in plan.notes
        assert by_engine(plan)["static"].status == "not_tried" and "too few" in by_engine(plan)["static"].reason


@pytest.mark.parametrize("tune", ["quick", "full"])
def test_a_trial_of_minutes_is_for_full_alone(monkeypatch: pytest.MonkeyPatch, folder: Path, tune: str) -> None:
    monkeypatch.setattr(sys.modules[__name__], "STEP_RATE", 10.0)  # 3 waves of 64 rows x 16 tokens: minutes
    machine = Machine({"continuous": (10.0,), "static": (9.0,), "paged": (9.0,)})
    plan, _ = planned(monkeypatch, folder, machine, batch_size=64, tune=tune)
    assert bool(machine.trials) == (tune == "full")
    if tune == "quick":
        assert any("without a trial of static: it would take" in note for note in plan.notes)
    else:
        assert max(machine.trials[0][2]) == engines.LEAST_TOKENS


def test_a_resumed_run_and_the_next_job_of_a_loader_keep_to_their_own_engines(
    monkeypatch: pytest.MonkeyPatch, folder: Path, tmp_path: Path
) -> None:
    machine = Machine({"continuous": (100.0,), "static": (200.0,), "paged": (90.0,)})
    monkeypatch.setattr(null, "load", lambda request: Several(machine, request))
    monkeypatch.setattr(beginning.Beginning, "_clock", staticmethod(machine.clock))
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"text": SAMPLE[i % 600] + f" {i}"}) + "\n" for i in range(200)))
    job: dict[str, Any] = {"max_new_tokens": 8, "shard_rows": 16, "tune": "full"}
    assert run_until_stopped(folder, rows, tmp_path / "out/", 20, **job)
    plan = json.loads((tmp_path / "out/_packhorse/manifest.json").read_text())["plan"]
    assert plan["engine"] == "static" and machine.trials
    machine.trials.clear()
    machine.jobs.clear()
    machine.rates |= {"continuous": (200.0,), "static": (100.0,)}  # another day it would have been the other way round
    report = run(folder, rows, tmp_path / "out/", **job)
    assert not machine.trials and set(machine.jobs) == {"static"}
    assert report.plan["engine"] == "static"
    run(folder, rows, tmp_path / "whole/", **job)
    assert machine.trials and parts(tmp_path / "out") == parts(tmp_path / "whole")


@pytest.mark.parametrize("seconds", [1.0, 20.0])
def test_a_stop_ends_a_trial(monkeypatch: pytest.MonkeyPatch, folder: Path, seconds: float) -> None:
    """A run's clock raises once the run is stopped."""

    class Stopped(Machine):
        began = 0.0

        def clock(self) -> float:
            if self.trials and self.now - self.began > seconds:
                raise InterruptedRunError(15, 0)
            if not self.trials:
                self.began = self.now
            return self.now

    with pytest.raises(InterruptedRunError):
        planned(monkeypatch, folder, Stopped({"continuous": (100.0,), "static": (90.0,)}))


def test_a_loader_forgets_the_engine_of_the_job_before(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    machine = Machine({"continuous": (100.0,), "static": (200.0,)})
    plan, loader = planned(monkeypatch, folder, machine)
    assert plan.engine == "static"
    short = choose(loader, 10, Texts("text", None), clock=machine.clock).plan
    assert short.engine == "continuous" == loader.generator("fp32").engine
    stages = loader.stages(plan, keep=[])
    assert getattr(stages.model, "engine", None) == "static"


def test_plan_prints_engines_and_rows(monkeypatch: pytest.MonkeyPatch, folder: Path, tmp_path: Path) -> None:
    from rich.console import Console

    from packhorse.report.plan_text import print_explanation

    machine = Machine({"continuous": (1_234.0,), "static": (1_000.0,)})
    monkeypatch.setattr(null, "load", lambda request: Several(machine, request))
    monkeypatch.setattr("packhorse.loading.choosing.choose_writing", _with_clock(machine))
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"text": SAMPLE[i % 600]}) + "\n" for i in range(4_000)))
    found = explain(folder, rows, backend="null", tune="quick", max_new_tokens=NEW)
    console = Console(width=200, record=True, file=(tmp_path / "shown").open("w"))
    print_explanation(found, console)
    shown = console.export_text()
    assert "> continuous: 1,234 tokens/s" in shown
    assert "  static: 1,000 tokens/s, beaten: 0.81 times the tokens a second" in shown
    assert "  paged: not tried: --tune full tries it" in shown
    assert "rows at once: 1,000 tokens/s" in shown


def _with_clock(machine: Machine) -> Any:
    from packhorse.loading.writing import choose_writing

    return lambda loader, total_rows, column, _: choose_writing(loader, total_rows, column, machine.clock)


def test_the_null_backend_has_one_engine(folder: Path) -> None:
    loader = Loader(EngineConfig(model=str(folder), backend="null", tune="full"))
    loader.see(list(SAMPLE), None)
    plan = choose(loader, ROWS, Texts("text", None)).plan
    assert (plan.engine, plan.alternatives) == ("null", ())
    assert NullGenerator(Decoding({}), None).engine == "null"
