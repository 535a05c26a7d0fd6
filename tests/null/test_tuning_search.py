"""The search on machines whose truth is known: against brute force over the table, and what finding out costs."""

from __future__ import annotations

import json
import math
from dataclasses import fields, replace
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from packhorse.errors import ModelError
from packhorse.plans import Alternative
from packhorse.tuning.candidates import Candidate, JobSize, Prediction, Trial, Trials, neighbours
from packhorse.tuning.gate import Verdict
from packhorse.tuning.search import Decision, search
from tests.null.simulated import BUDGETS, CORES, START_BUDGET, Family, SimulatedMachine, random_machine

SHARE = 0.03
SEEDS = range(50)
FP32, BF16, INT8 = ("torch", "fp32"), ("torch", "bf16"), ("torch", "int8")
OPENVINO = ("openvino", "fp32")


def job_of(hours: float, tokens_per_s: float = 2_000.0) -> JobSize:
    tokens = hours * 3_600 * tokens_per_s
    return JobSize(tokens / 50, tokens, 512)


def decide(machine: SimulatedMachine, job: JobSize, mode: Literal["off", "quick", "full"]) -> Decision:
    candidates = machine.candidates()
    return search(candidates, candidates[0], job, machine, mode, budgets=BUDGETS)


def of(decision: Decision, family: tuple[str, str]) -> Alternative:
    """The family's entry with the default knobs."""
    return next(
        a for a in decision.alternatives if (a.backend, a.precision, a.max_batch_tokens) == (*family, START_BUDGET)
    )


def families_tried(machine: SimulatedMachine) -> list[tuple[str, str]]:
    return list(dict.fromkeys(c.family for c in machine.measured))


# -- off, and what is not worth a trial


def test_off_measures_nothing_and_takes_the_default() -> None:
    machine = SimulatedMachine({FP32: Family(1_000), BF16: Family(9_000), OPENVINO: Family(2_000, setup_s=15)})
    decision = decide(machine, job_of(1), "off")
    assert (decision.chosen.family, decision.source, decision.tuned_s) == (FP32, "default", 0)
    assert machine.measured == [] and machine.now == 100
    assert [(a.status, a.reason) for a in decision.alternatives[1:]] == [("not_tried", "--tune off")] * 2
    assert decision.chosen_rate == 1_000 and decision.chosen_total_s == pytest.approx(7_200 + 1)
    assert of(decision, BF16).total_s == pytest.approx(7.2e6 / 9_000 + 1)


def test_200_rows_are_not_worth_a_trial() -> None:
    machine = SimulatedMachine(
        {FP32: Family(2_000), BF16: Family(4_000, is_gated=True), OPENVINO: Family(3_000, setup_s=15)}
    )
    decision = decide(machine, JobSize(200, 10_000, 64), "quick")
    assert machine.measured == [] and machine.now == 100 and decision.tuned_s == 0
    assert (decision.chosen.family, decision.source) == (FP32, "predicted")
    assert of(decision, OPENVINO).reason == "would save 2.7 s, costs 15 s to set up and 3.7 s to try"


def test_a_set_up_beyond_the_share_of_the_run_is_named_with_its_figures() -> None:
    machine = SimulatedMachine({FP32: Family(2_000, setup_s=0), OPENVINO: Family(4_000, setup_s=60)})
    decision = decide(machine, job_of(1 / 12), "quick")
    assert decision.chosen.family == FP32
    reason = of(decision, OPENVINO).reason
    assert reason.startswith("its set-up of 60 s and trial of 1.2 s are more than 3% of the run (9")
    assert reason.endswith("; --tune full tries it")
    assert decide(replace(machine, measured=[], loaded=set()), job_of(1 / 12), "full").chosen.family == OPENVINO


def test_a_candidate_that_would_not_be_faster_is_not_tried() -> None:
    machine = SimulatedMachine({FP32: Family(2_000), OPENVINO: Family(500, setup_s=15)})
    decision = decide(machine, job_of(2), "quick")
    assert OPENVINO not in families_tried(machine)
    assert "predicted to take" in of(decision, OPENVINO).reason


@pytest.mark.parametrize("mode", ["quick", "full"])
def test_what_is_not_possible_is_not_tried(mode: Literal["quick", "full"]) -> None:
    table = {FP32: Family(2_000), OPENVINO: Family(9_000, predicted_rate=0.0)}
    machine = SimulatedMachine(table)
    assert of(decide(machine, job_of(2), mode), OPENVINO).reason == "not possible here"
    with pytest.raises(ModelError, match="torch fp32: no kernel; openvino fp32: not possible here"):
        decide(SimulatedMachine(table | {FP32: Family(2_000, error="no kernel")}), job_of(2), mode)


# -- scenarios


def test_a_processor_without_bf16_instructions_keeps_fp32_though_bf16_was_predicted_faster() -> None:
    machine = SimulatedMachine(
        {FP32: Family(2_000), BF16: Family(200, predicted_rate=4_000, is_gated=True), INT8: Family(5_000, setup_s=7)}
    )
    decision = decide(machine, job_of(1), "quick")
    assert decision.chosen.family == INT8
    assert of(decision, BF16).status == "beaten" and of(decision, BF16).reason.startswith("stopped early, at 200 ")
    assert BF16 not in machine.judged, "it is given up before its gate"


@pytest.mark.parametrize(("hours", "expected"), [(0.02, FP32), (3, OPENVINO)])
@pytest.mark.parametrize("mode", ["quick", "full"])
def test_a_slow_export_repays_on_a_long_job_only(
    hours: float, expected: tuple[str, str], mode: Literal["quick", "full"]
) -> None:
    machine = SimulatedMachine({FP32: Family(2_000), OPENVINO: Family(3_000, setup_s=60)})
    assert decide(machine, job_of(hours), mode).chosen.family == expected


@pytest.mark.parametrize("mode", ["quick", "full"])
def test_a_budget_that_does_not_fit_into_memory_is_never_chosen(mode: Literal["quick", "full"]) -> None:
    machine = SimulatedMachine({FP32: Family(2_000, best_budget=16_384)}, max_tokens=4_096)
    decision = decide(machine, job_of(5), mode)
    assert decision.chosen.max_batch_tokens == 4_096
    too_large = next(a for a in decision.alternatives if a.max_batch_tokens == 8_192)
    assert (too_large.status, too_large.total_s) == ("failed", None)
    assert too_large.reason == "8192 tokens do not fit into memory"
    assert max(c.max_batch_tokens for c in machine.measured) == 8_192, "one step beyond, no further"


@pytest.mark.parametrize("mode", ["quick", "full"])
def test_a_fast_device_gets_the_large_budget_it_wants(mode: Literal["quick", "full"]) -> None:
    machine = SimulatedMachine({FP32: Family(500_000, setup_s=2, best_budget=16_384)})
    decision = decide(machine, job_of(1, 500_000), mode)
    assert decision.chosen.max_batch_tokens == 16_384
    assert decision.chosen_rate == pytest.approx(500_000)


def test_workers_and_threads_are_a_knob() -> None:
    machine = SimulatedMachine({FP32: Family(2_000, splits=(0.8, 1.0, 0.7))})
    chosen = decide(machine, job_of(3), "full").chosen
    assert (chosen.workers, chosen.threads) == (CORES // 2, 2)


def test_a_knob_within_the_noise_is_not_taken() -> None:
    machine = SimulatedMachine({FP32: Family(2_000, splits=(0.98, 1.0, 0.9), budget_loss=0.0)})
    decision = decide(machine, job_of(3), "full")
    assert (decision.chosen.workers, decision.chosen.max_batch_tokens) == (CORES, START_BUDGET)
    assert any(a.status == "beaten" and "noise" in a.reason for a in decision.alternatives)


def test_a_surprise_changes_what_is_tried_next() -> None:
    """torch runs at a quarter of what was predicted, so that its bf16 is believed to be slower than OpenVINO."""
    torch = {FP32: Family(500, predicted_rate=2_000), BF16: Family(1_000, predicted_rate=4_000)}
    others = {OPENVINO: Family(2_200, setup_s=5)}
    as_predicted = SimulatedMachine({k: replace(f, rate=f.predicted_rate or 0) for k, f in torch.items()} | others)
    decide(as_predicted, job_of(1), "quick")
    assert families_tried(as_predicted)[:2] == [FP32, BF16]
    surprising = SimulatedMachine(torch | others)
    decide(surprising, job_of(1), "quick")
    assert families_tried(surprising)[:2] == [FP32, OPENVINO]


def test_all_predictions_lie_and_full_finds_the_best_all_the_same() -> None:
    machine = SimulatedMachine(
        {
            FP32: Family(900, predicted_rate=2_000),
            BF16: Family(300, predicted_rate=4_000),
            OPENVINO: Family(4_000, predicted_rate=1_500, setup_s=10),
            INT8: Family(700, predicted_rate=9_000),
        }
    )
    assert decide(machine, job_of(1), "full").chosen.family == OPENVINO


def test_a_set_up_that_another_one_paid_for_is_counted_at_what_is_left_of_it() -> None:
    """Half an hour, 3% are 54 s: a conversion of 60 s does not fit, but one of 40 s for both precisions does."""
    bf16 = ("openvino", "bf16")
    table = {FP32: Family(2_000), OPENVINO: Family(2_200, setup_s=40), bf16: Family(4_000, setup_s=60)}
    alone = SimulatedMachine(table)
    assert decide(alone, job_of(0.5), "quick").chosen.family == OPENVINO
    shared = SimulatedMachine(table | {bf16: Family(4_000, setup_s=60, later_setup_s=1)})
    assert decide(shared, job_of(0.5), "quick").chosen.family == bf16


def test_full_turns_the_knobs_of_the_second_best_too() -> None:
    """OpenVINO is 10% behind with the default budget, and ahead with the one that it likes best."""
    machine = SimulatedMachine(
        {FP32: Family(2_000), OPENVINO: Family(2_210, best_budget=8_192, budget_loss=0.05, setup_s=1)}
    )
    default, other = machine.candidates()
    assert machine.true_rate(other) < 0.92 * machine.true_rate(default)
    assert decide(machine, job_of(2), "full").chosen == replace(other, max_batch_tokens=8_192)


# -- failures


@pytest.mark.parametrize("mode", ["quick", "full"])
@pytest.mark.parametrize("flaw", [{"error": "no kernel"}, {"is_gated": True, "is_accurate": False}])
def test_the_next_best_that_works_is_taken_where_the_default_fails(mode: Literal["quick", "full"], flaw: dict) -> None:
    machine = SimulatedMachine(
        {FP32: Family(2_000, **flaw), BF16: Family(1_800, error="nor this"), OPENVINO: Family(1_000, setup_s=90)}
    )
    decision = decide(machine, job_of(0.5), mode)
    assert decision.chosen.family == OPENVINO and decision.source == "measured"
    first = of(decision, FP32)
    assert first.status == ("failed" if "error" in flaw else "inaccurate")
    assert first.reason == ("no kernel" if "error" in flaw else "0.3 beyond the tolerance")


@pytest.mark.parametrize("mode", ["quick", "full"])
def test_the_reasons_are_listed_where_nothing_works(mode: Literal["quick", "full"]) -> None:
    machine = SimulatedMachine({FP32: Family(2_000, error="no kernel"), BF16: Family(2_000, error="no instructions")})
    with pytest.raises(ModelError, match=r"torch fp32: no kernel; torch bf16: no instructions"):
        decide(machine, job_of(1), mode)


def test_an_inaccurate_precision_never_wins_nor_do_its_knobs() -> None:
    machine = SimulatedMachine({FP32: Family(2_000), INT8: Family(9_000, is_gated=True, is_accurate=False)})
    decision = decide(machine, job_of(1), "full")
    assert decision.chosen.family == FP32
    listed = of(decision, INT8)
    assert (listed.status, listed.measured_tokens_per_s) == ("inaccurate", pytest.approx(9_000, rel=0.01))
    assert [c for c in machine.measured if c.family == INT8] == [Candidate(*INT8, START_BUDGET, CORES, 1)]


def test_a_verdict_counts_for_all_knobs_of_its_precision() -> None:
    machine = SimulatedMachine({FP32: Family(2_000), BF16: Family(4_000, is_gated=True, best_budget=8_192)})
    decision = decide(machine, job_of(2), "quick")
    assert decision.chosen == Candidate(*BF16, 8_192, CORES, 1)
    assert decision.alternatives[0].accuracy == Verdict(True, "within the tolerance")._asdict()


def test_neither_a_beaten_trial_nor_one_that_failed_is_the_best_whatever_its_rate() -> None:
    ways = [Candidate("torch", precision, 512, 1, 1) for precision in ("fp32", "bf16", "fp16", "int8")]
    trials = Trials(ways, ways[0], job_of(1), lambda _: Prediction(1_000, 0, 0))
    inaccurate = Trial(9_000, accuracy=Verdict(False, "beyond"))
    outcomes = [Trial(100), Trial(9_000, is_beaten=True), Trial(9_000, error="refused"), inaccurate]
    for way, trial in zip(ways, outcomes, strict=True):
        trials.add(way, trial)
        assert trials.best == ways[0]
    assert [trials.is_usable(way) for way in ways] == [True, True, False, False]


# -- what finding out costs


def test_the_gate_of_a_cheap_precision_is_an_investment() -> None:
    """10 minutes at fp32, 3% are 18 s; the gate costs 40 s and saves 5 minutes."""
    machine = SimulatedMachine({FP32: Family(2_000), BF16: Family(4_000, is_gated=True)}, gate_s=40)
    assert decide(machine, job_of(1 / 6), "quick").chosen.family == BF16
    rested = SimulatedMachine({FP32: Family(2_000), BF16: Family(4_000, is_gated=True, best_budget=4_096)}, gate_s=40)
    chosen = decide(rested, job_of(1 / 6), "quick").chosen
    assert chosen == Candidate(*BF16, 4_096, CORES, 1), "the share is not used up by it: knobs are still turned"
    slow = SimulatedMachine({FP32: Family(2_000), BF16: Family(4_000, is_gated=True)}, gate_s=160)
    decision = decide(slow, job_of(1 / 6), "quick")
    assert decision.chosen.family == FP32 and BF16 not in families_tried(slow)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("hours", [0.05, 0.3, 2, 12])
def test_quick_spends_at_most_its_share_of_the_run_and_what_gates_repay(seed: int, hours: float) -> None:
    """As predicted, so that every cost is known before it is paid: then the bound is strict."""
    machine, job = random_machine(seed), job_of(hours)
    machine.families = {family: replace(truth, predicted_rate=None) for family, truth in machine.families.items()}
    decision = decide(machine, job, "quick")
    default = machine.candidates()[0]
    untuned_s = (
        machine.predict(default).setup_s + machine.setup_spent_s.get(FP32, 0) + job.run_s(machine.true_rate(default))
    )
    better = [c for c in machine.measured if machine.true_rate(c) > machine.true_rate(default)]
    paid = {FP32, *(c.family for c in better)}  # each was the best for a while: who takes it at once pays its set-up
    explored_s = decision.tuned_s - sum(machine.setup_spent_s.get(family, 0.0) for family in paid)
    gated = [c for c in machine.measured if machine.families[c.family].is_gated and machine.outcomes[c].accuracy]
    if explored_s > SHARE * untuned_s:
        assert gated, "only an accuracy gate may go beyond the share"
        assert explored_s - machine.gated_s <= SHARE * untuned_s
        for candidate in gated:
            saving_s = untuned_s - job.run_s(machine.true_rate(candidate))
            assert saving_s >= 2 * machine.gate_s
    assert decision.tuned_s == pytest.approx(machine.now - 100)


@pytest.mark.parametrize("seed", SEEDS)
def test_quick_never_takes_a_way_that_was_measured_slower_than_the_default(seed: int) -> None:
    machine, job = random_machine(seed, prior_error=4), job_of(1)
    decision = decide(machine, job, "quick")
    default = machine.candidates()[0]
    assert machine.true_rate(decision.chosen) >= machine.true_rate(default)


@pytest.mark.parametrize("seed", SEEDS)
def test_full_finds_the_best_of_the_table(seed: int) -> None:
    """Within the noise, and within 3% for each knob, which is what a knob has to gain before it is turned.

    Brute force over the table is the reference. Long, so that no set-up counts; predictions within a factor of 2.
    """
    machine, job = random_machine(seed, noise=0.01, prior_error=2), job_of(1_000)
    decision = decide(machine, job, "full")
    best_s = min(machine.true_total_s(c, job) for c in machine.everything())
    assert machine.true_total_s(decision.chosen, job) <= best_s * 1.03 * 1.03 * 1.02
    assert machine.can_run(decision.chosen)


@pytest.mark.parametrize("seed", SEEDS)
def test_with_its_set_up_counted_full_is_never_behind_the_default(seed: int) -> None:
    machine, job = random_machine(seed), job_of(0.1)
    decision = decide(machine, job, "full")
    rates = {c: machine.true_rate(c) for c in machine.measured if machine.can_run(c)}
    assert rates[decision.chosen] >= (1 - 1e-9) * rates[machine.candidates()[0]]


def test_a_beaten_trial_stops_early() -> None:
    machine = SimulatedMachine({FP32: Family(4_000), OPENVINO: Family(2_000, setup_s=3)})
    begin = machine.now
    decision = decide(machine, job_of(1, 4_000), "full")
    assert of(decision, OPENVINO).reason.startswith("stopped early, at 2,000 tokens/s")
    whole = 0.2 + 4_000 / 2_000
    assert machine.outcomes[Candidate(*OPENVINO, START_BUDGET, CORES, 1)].is_beaten
    assert machine.now - begin < 1 + 3 + whole + len(machine.measured) * 1.3


@given(st.integers(0, 10_000), st.sampled_from(["quick", "full"]), st.floats(1e-3, 100), st.floats(1, 8))
def test_every_decision_is_complete_and_the_same_for_the_same_machine(
    seed: int, mode: Literal["quick", "full"], hours: float, prior_error: float
) -> None:
    machine, again = (random_machine(seed, noise=0.02, prior_error=prior_error) for _ in range(2))
    decision = decide(machine, job_of(hours), mode)
    assert decision == decide(again, job_of(hours), mode)
    assert machine.can_run(decision.chosen)
    assert len(machine.measured) == len(set(machine.measured))
    first, *others = decision.alternatives
    assert (first.backend, first.precision, first.max_batch_tokens) == (
        *decision.chosen.family, decision.chosen.max_batch_tokens
    )  # fmt: skip
    assert [a.status == "chosen" for a in decision.alternatives] == [True] + [False] * len(others)
    assert all(a.reason for a in others)
    totals = [math.inf if a.total_s is None else a.total_s for a in others]
    assert totals == sorted(totals)
    knobs = [f.name for f in fields(Candidate)]
    considered = [Candidate(**a.model_dump(include=set(knobs))) for a in decision.alternatives]
    assert set(considered) == {*machine.candidates(), *machine.measured}
    for a, candidate in zip(decision.alternatives, considered, strict=True):
        was_tried = candidate in machine.measured
        assert was_tried != (a.status == "not_tried" or decision.source != "measured")


@given(st.integers(0, 10_000), st.floats(1e-3, 10))
def test_a_decision_survives_json(seed: int, hours: float) -> None:
    decision = decide(random_machine(seed), job_of(hours), "quick")
    assert Decision.from_json(json.loads(json.dumps(decision.to_json(), allow_nan=False))) == decision


@pytest.mark.parametrize("broken", [{}, {"alternatives": 3}, {"alternatives": [{"backend": 1}], "chosen": {}}])
def test_what_is_no_decision_is_refused(broken: dict) -> None:
    with pytest.raises(ValueError):
        Decision.from_json(broken)


# -- knobs


@given(st.integers(1, 64), st.integers(0, 12), st.integers(0, 12))
def test_neighbours_turn_one_knob_within_the_bounds(cores: int, low: int, high: int) -> None:
    bounds = (64 * 2 ** min(low, high), 64 * 2 ** max(low, high))
    candidate = Candidate("torch", "fp32", bounds[0], cores, 1)
    for other in neighbours(candidate, cores, bounds):
        assert other.family == candidate.family and other != candidate
        assert bounds[0] <= other.max_batch_tokens <= bounds[1] and other.workers * other.threads == cores
        changed_budget = other.max_batch_tokens != candidate.max_batch_tokens
        changed_split = (other.workers, other.threads) != (candidate.workers, candidate.threads)
        assert changed_budget + changed_split + (other.tokenizer_threads is not None) == 1
        assert other.tokenizer_threads is None or 1 <= other.tokenizer_threads < cores


def test_neighbours_of_8_cores() -> None:
    found = neighbours(Candidate("torch", "fp32", 1_024, 8, 1), 8, (512, 4_096))
    assert [(c.max_batch_tokens, c.workers, c.threads, c.tokenizer_threads) for c in found] == [
        (2_048, 8, 1, None), (512, 8, 1, None), (1_024, 1, 8, None), (1_024, 4, 2, None), (1_024, 8, 1, 4),
        (1_024, 8, 1, 1),
    ]  # fmt: skip


def test_compiled_code_keeps_to_one_worker() -> None:
    compiled = Candidate("torch", "fp32", 1_024, 1, 8, compiled=True)
    assert {(c.workers, c.threads, c.compiled) for c in neighbours(compiled, 8, (512, 4_096))} == {(1, 8, True)}


def test_one_core_leaves_workers_and_threads_as_they_are() -> None:
    assert neighbours(Candidate("torch", "fp32", 1_024, 1, 16), 1, (1_024, 1_024)) == ()


def test_knobs_do_not_repay_where_the_set_up_is_most_of_the_run() -> None:
    """3% of 200 s are 6 s, and a trial takes 2; but the rows themselves take 5 s."""
    machine = SimulatedMachine({FP32: Family(2_000, setup_s=195)})
    decide(machine, JobSize(200, 10_000, 64), "quick")
    assert machine.measured == []


def test_a_job_without_tokens_takes_the_default() -> None:
    machine = SimulatedMachine({FP32: Family(2_000), BF16: Family(4_000)})
    assert decide(machine, JobSize(0, 0, 0), "quick").chosen.family == FP32
    assert machine.measured == []


def test_two_candidates_of_a_family_are_a_mistake_of_the_caller() -> None:
    machine = SimulatedMachine({FP32: Family(2_000)})
    twice = [*machine.candidates(), replace(machine.candidates()[0], max_batch_tokens=64)]
    with pytest.raises(ValueError, match="one a family"):
        search(twice, twice[0], job_of(1), machine, "quick")


def test_the_cost_of_a_prediction_is_set_up_and_trial() -> None:
    assert Prediction(1_000, 3, 4, gate_s=2).cost_s == 7
