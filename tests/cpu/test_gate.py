"""A lower precision is used only where its values agree with fp32's; what was measured is reported as figures."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import beta

from packhorse.data import Reduction
from packhorse.tuning import gate
from packhorse.tuning.gate import Verdict, compare, default_tolerance, stratified, upper_bound

SOFTMAX, SIGMOID, VALUES = (
    Reduction("classify", 2, "softmax"),
    Reduction("classify", 2, "sigmoid"),
    Reduction("classify", 1, "none"),
)
POOL = Reduction("pool", 2)
SURE, CLOSE = [0.9, 0.1], [0.505, 0.495]
NAN = [np.nan, np.nan]


def judge(reference: Any, candidate: Any, reduction: Reduction, tolerance: float | None = None) -> Verdict:
    """By default at bf16's tolerance."""
    tolerance = default_tolerance("bf16", reduction) if tolerance is None else tolerance
    return compare(np.array(reference, np.float32), np.array(candidate, np.float32), reduction, tolerance)


def scores(winner: list[float] | np.ndarray) -> np.ndarray:
    """Two columns whose first is given."""
    first = np.asarray(winner, np.float32)
    return np.stack([first, 1 - first], 1)


# -- which pass


@pytest.mark.parametrize(
    ("reduction", "reference", "candidate", "passes"),
    [
        (SOFTMAX, [SURE, CLOSE], [[0.89, 0.11], CLOSE], True),
        (SOFTMAX, [SURE, CLOSE], [[0.85, 0.15], CLOSE], False),  # the label holds, the score does not
        (SOFTMAX, [SURE, CLOSE], [[0.1, 0.9], CLOSE], False),  # flips though fp32 was sure
        (SOFTMAX, [SURE, CLOSE], [SURE, [0.495, 0.505]], True),  # flips where fp32 itself was undecided
        (SOFTMAX, [SURE], [NAN], False),
        (SOFTMAX, [SURE], [[np.inf, 0.0]], False),
        (SIGMOID, [[0.505, 0.2]], [[0.495, 0.2]], True),
        (SIGMOID, [[0.7, 0.2]], [[0.3, 0.2]], False),
        (VALUES, [[10.0], [-10.0]], [[10.1], [-10.1]], True),
        (VALUES, [[10.0], [-10.0]], [[11.0], [-10.0]], False),
        (POOL, [[1.0, 2.0], [3.0, 4.0]], [[1.001, 2.0], [3.0, 4.001]], True),
        (POOL, [[1.0, 2.0], [3.0, 4.0]], [[1.0, 2.0], [3.0, -4.0]], False),  # one bad row among good ones
        (POOL, [[1.0, 2.0]], [[np.nan, 2.0]], False),
        (POOL, [[1.0, 2.0]], [[2.0, 4.0]], False),  # the same direction, twice as long
        (POOL, [[0.0, 0.0], [1.0, 2.0]], [[0.0, 0.0], [1.0, 2.0]], True),
        (POOL, [[0.0, 0.0]], [[1.0, 2.0]], False),
        (POOL, [[1.0, 2.0]], [[0.0, 0.0]], False),
        (POOL, [[1e30, 2e30]], [[1e30, 2e30]], True),  # the squares are beyond float32
    ],
)
def test_lower_precision_must_agree(reduction: Reduction, reference: Any, candidate: Any, passes: bool) -> None:
    verdict = judge(reference, candidate, reduction)
    assert verdict.passed is passes
    assert verdict.finding and "\n" not in verdict.finding


@pytest.mark.parametrize(("over", "passes"), [(5, True), (6, False)])
def test_one_row_in_a_hundred_may_exceed_the_tolerance(over: int, passes: bool) -> None:
    reference, candidate = scores(np.full(512, 0.9)), np.full(512, 0.9)
    candidate[:over] -= 0.04
    assert judge(reference, scores(candidate), SOFTMAX).passed is passes


@pytest.mark.parametrize(("difference", "passes"), [(0.09, True), (0.11, False)])
def test_no_row_may_exceed_it_five_times(difference: float, passes: bool) -> None:
    reference, candidate = scores(np.full(512, 0.9)), np.full(512, 0.9)
    candidate[7] -= difference
    verdict = judge(reference, scores(candidate), SOFTMAX)
    assert verdict.passed is passes
    assert verdict.max_difference == pytest.approx(difference, abs=1e-6) and verdict.p99_difference == 0


@pytest.mark.parametrize(
    ("rows", "changed", "passes"), [(512, 2, True), (512, 3, False), (315, 1, True), (314, 1, False), (2, 1, False)]
)
def test_few_sure_labels_may_change_and_in_few_rows_none(rows: int, changed: int, passes: bool) -> None:
    """0.54 is sure at a tolerance of 0.02; 0.49 is within 5 tolerances of it."""
    reference, candidate = scores(np.full(rows, 0.54)), np.full(rows, 0.54)
    candidate[:changed] = 0.49
    verdict = judge(reference, scores(candidate), SOFTMAX)
    assert verdict.changed_labels == changed
    assert verdict.changed_upper_95 == pytest.approx(beta.ppf(0.95, changed + 1, rows - changed))
    assert verdict.passed is passes
    assert (verdict.changed_upper_95 <= gate.MAX_CHANGED) is passes


def test_one_label_is_a_yes_or_no() -> None:
    one = Reduction("classify", 1, "sigmoid")
    verdict = judge([[0.53], [0.505], [0.9]], [[0.48], [0.495], [0.9]], one, tolerance=0.02)
    assert verdict.changed_labels == 1  # 0.505 is no more sure than 0.505 against 0.495
    assert judge([[1.0]], [[1.0]], Reduction("classify", 1, "softmax")).changed_labels == 0


def test_a_row_of_several_labels_counts_once() -> None:
    three = Reduction("classify", 3, "sigmoid")
    verdict = judge([[0.9, 0.9, 0.1], [0.9, 0.9, 0.1]], [[0.1, 0.1, 0.1], [0.9, 0.9, 0.1]], three)
    assert verdict.changed_labels == 1 and not verdict.passed


def test_each_output_of_a_regression_has_a_spread_of_its_own() -> None:
    two = Reduction("classify", 2, "none")
    reference = np.array([[1000.0, 0.1], [-1000.0, -0.1], [500.0, 0.0]])
    assert judge(reference, reference * 1.001, two).passed
    assert not judge(
        reference, reference + np.array([0.0, 0.05]), two
    ).passed  # little beside 1000, half of the other's spread


def test_rows_that_fp32_cannot_do_do_not_count() -> None:
    verdict = judge([SURE, NAN], [SURE, NAN], SOFTMAX)
    assert verdict.passed and verdict.rows == 1
    assert not judge([NAN], [SURE], SOFTMAX).passed
    assert not judge(np.empty((0, 2)), np.empty((0, 2)), SOFTMAX).passed


def test_int8_may_differ_more_than_bf16() -> None:
    reference, candidate = scores([0.9, 0.8]), scores([0.87, 0.8])
    assert not judge(reference, candidate, SOFTMAX, default_tolerance("bf16", SOFTMAX)).passed
    assert judge(reference, candidate, SOFTMAX, default_tolerance("int8", SOFTMAX)).passed


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16", "int8", "fp8"])
def test_every_precision_has_a_tolerance(precision: str) -> None:
    assert 0 < default_tolerance(precision, POOL) < default_tolerance(precision, SOFTMAX) <= 0.05


# -- what is reported

FINITE = st.floats(-1e3, 1e3, width=32)
PAIRS = st.integers(1, 6).flatmap(
    lambda n: st.tuples(*(st.lists(st.tuples(FINITE, FINITE), min_size=n, max_size=n),) * 2)
)


@given(PAIRS, st.sampled_from([SOFTMAX, SIGMOID, VALUES, POOL]), st.floats(1e-4, 1.0))
def test_figures_are_numbers_and_json(pair: Any, reduction: Reduction, tolerance: float) -> None:
    verdict = judge(*pair, reduction, tolerance)
    figures = json.loads(json.dumps(verdict._asdict()))
    assert figures["rows"] == len(pair[0])
    assert math.isfinite(figures["max_difference"]) and 0 <= figures["p99_difference"] <= figures["max_difference"]
    has_labels = reduction in (SOFTMAX, SIGMOID)
    assert (figures["changed_labels"] is not None) == (figures["changed_upper_95"] is not None) == has_labels


@given(PAIRS, st.sampled_from([SOFTMAX, SIGMOID, VALUES, POOL]))
def test_fp32_agrees_with_itself_and_never_with_what_is_no_number(pair: Any, reduction: Reduction) -> None:
    reference = np.array(pair[0], np.float32)
    assert judge(reference, reference, reduction)[:1] == (True,)
    broken = reference.copy()
    broken[-1, 0] = np.nan
    assert not judge(reference, broken, reduction, tolerance=1e9).passed


@given(PAIRS, st.sampled_from([SOFTMAX, SIGMOID, VALUES, POOL]), st.floats(1e-4, 0.4), st.floats(1.0, 4.0))
def test_a_higher_tolerance_never_fails_what_a_lower_one_passed(
    pair: Any, reduction: Reduction, tolerance: float, factor: float
) -> None:
    if judge(*pair, reduction, tolerance).passed:
        assert judge(*pair, reduction, tolerance * factor).passed


@given(st.lists(st.tuples(st.floats(-1, 1), st.floats(-1, 1)).filter(lambda v: math.hypot(*v) > 0.1), min_size=1))
def test_for_unit_vectors_the_distance_is_one_minus_the_cosine(vectors: list[tuple[float, float]]) -> None:
    reference = np.array(vectors) / np.linalg.norm(vectors, axis=1, keepdims=True)
    candidate = np.roll(reference, 1, axis=1)
    verdict = judge(reference, candidate, POOL)
    assert verdict.max_difference == pytest.approx((1 - (reference * candidate).sum(1)).max(), abs=1e-6)


# -- the bound


@given(st.integers(1, 600).flatmap(lambda n: st.tuples(st.integers(0, n - 1), st.just(n))))
def test_the_bound_is_clopper_and_pearsons(case: tuple[int, int]) -> None:
    changed, rows = case
    assert upper_bound(changed, rows) == pytest.approx(beta.ppf(0.95, changed + 1, rows - changed), rel=1e-9)


@given(st.integers(2, 600).flatmap(lambda n: st.tuples(st.integers(0, n - 2), st.just(n))))
def test_the_bound_grows_with_changes_and_shrinks_with_rows(case: tuple[int, int]) -> None:
    changed, rows = case
    assert changed / rows < upper_bound(changed, rows) < upper_bound(changed + 1, rows) <= 1
    assert upper_bound(changed, rows + 1) < upper_bound(changed, rows) < upper_bound(changed, rows, 0.99)


def test_the_bound_at_its_ends() -> None:
    assert upper_bound(0, 512) == pytest.approx(1 - 0.05 ** (1 / 512))
    assert upper_bound(512, 512) == upper_bound(0, 0) == 1


# -- the sample


@given(st.lists(st.integers(0, 5_000), max_size=900))
def test_the_sample_is_spread_over_the_lengths(lengths: list[int]) -> None:
    array = np.array(lengths, np.int64)
    rows = stratified(array)
    able = int((array > 0).sum())
    assert len(set(rows.tolist())) == len(rows) <= min(able, gate.SAMPLE_ROWS)
    assert (array[rows] > 0).all() and (np.diff(array[rows]) >= 0).all()
    assert array[rows].sum() <= gate.SAMPLE_TOKENS
    if able <= gate.SAMPLE_ROWS and array.sum() <= gate.SAMPLE_TOKENS:
        assert len(rows) == able  # all of a small job
    if len(rows) > 1:
        assert (array[rows[0]], array[rows[-1]]) == (array[array > 0].min(), array.max())


def test_the_sample_of_a_large_job_is_full_and_looks_like_it() -> None:
    lengths = np.random.default_rng(0).geometric(1 / 50, 20_000)
    rows = stratified(lengths)
    assert len(rows) == 512
    assert np.median(lengths[rows]) == pytest.approx(np.median(lengths), abs=2)


def test_the_ceiling_of_tokens_is_kept_and_almost_reached() -> None:
    rows = stratified(np.full(2_000, 512))
    assert len(rows) == gate.SAMPLE_TOKENS // 512
    assert stratified(np.array([10**6])).tolist() == [0]  # alone it may exceed it
    assert len(stratified(np.full(2_000, 8), max_rows=64)) == 64
