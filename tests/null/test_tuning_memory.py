"""What a way is believed to take before it was tried: memory of a batch, rate and set-up of a model."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import nnls

from packhorse.model_cost import ModelCost
from packhorse.tuning.memory import NO_LIMIT, SAFETY_SHARE, MemoryModel, fit, largest_budget, largest_fitting
from packhorse.tuning.prior import BATCH_OVERHEAD_S, EXPORT_S, LOAD_S, efficiency, load_s, predicted_rate, setup_s

GIB = 2**30
MODELS = st.builds(
    MemoryModel, st.integers(0, 10 * GIB), st.integers(0, 200_000), st.integers(0, 500)
)  # bytes: of weights, a token, a squared token
SHAPES = [(1, 16), (4, 16), (64, 16), (1, 512), (4, 512), (16, 128), (2, 2_048)]
BUDGETS = [2**k for k in range(9, 18)]
BERT_BASE = ModelCost(per_token=0.172e9)


def samples_of(model: MemoryModel, shapes: list[tuple[int, int]] = SHAPES) -> list[tuple[int, int, int]]:
    return [(rows, longest, round(model.peak_bytes(rows, longest))) for rows, longest in shapes]


# -- memory


def test_the_peak_is_that_of_the_formula() -> None:
    assert MemoryModel(1_000, 10, 2).peak_bytes(3, 5) == 1_000 + 10 * 15 + 2 * 75


@given(MODELS)
def test_a_fit_to_trials_without_noise_predicts_other_batches(model: MemoryModel) -> None:
    found = fit(samples_of(model))
    for rows, longest in [(8, 64), (32, 512), (1, 1_024)]:
        assert found.peak_bytes(rows, longest) == pytest.approx(model.peak_bytes(rows, longest), rel=1e-3, abs=1e5)


@given(MODELS, st.integers(0, 10_000))
def test_a_fit_is_the_best_with_coefficients_that_are_not_negative(model: MemoryModel, seed: int) -> None:
    """Against Lawson and Hanson's algorithm in scipy."""
    random = np.random.default_rng(seed)
    samples = [(r, n, round(peak * random.uniform(0.5, 2)) + 1) for r, n, peak in samples_of(model)]
    found = fit(samples)
    rows, longest, peaks = np.array(samples, np.float64).T
    columns = np.stack([np.ones_like(rows), rows * longest, rows * longest**2], axis=1)
    scales = columns.max(0)
    _, least = nnls(columns / scales, peaks)
    coefficients = np.array([found.fixed_bytes, found.bytes_per_token, found.bytes_per_squared_token])
    assert (coefficients >= 0).all()
    assert np.linalg.norm(columns @ coefficients - peaks) <= least + 1e-5 * peaks.max()


def test_one_trial_is_taken_to_grow_with_the_tokens() -> None:
    found = fit([(4, 100, 8_000)])
    assert found.peak_bytes(4, 100) == pytest.approx(8_000)
    assert found.peak_bytes(8, 100) == pytest.approx(16_000)


def test_two_trials_tell_weights_from_tokens() -> None:
    found = fit([(4, 100, 5_000), (8, 100, 9_000)])
    assert (found.fixed_bytes, found.bytes_per_token) == (pytest.approx(1_000), pytest.approx(10))


def test_no_trial_is_no_model() -> None:
    with pytest.raises(ValueError, match="no trial"):
        fit([])


@given(MODELS, st.integers(1, 80), st.sampled_from([16, 128, 512, 4_096]))
def test_the_largest_budget_is_the_last_that_fits(model: MemoryModel, free_gib: int, longest: int) -> None:
    budget = largest_budget(model, free_gib * GIB, longest)
    share = SAFETY_SHARE * free_gib * GIB

    def peak(tokens: int) -> float:
        return model.fixed_bytes + (model.bytes_per_token + model.bytes_per_squared_token * longest) * tokens

    assert budget == 0 or peak(budget) <= share * (1 + 1e-9)
    assert budget == NO_LIMIT or peak(budget + 1) > share * (1 - 1e-9)


@given(MODELS, MODELS, st.integers(1, 80))
def test_the_largest_fitting_budget_is_found_by_model_and_checked_by_trial(
    believed: MemoryModel, truth: MemoryModel, free_gib: int
) -> None:
    tried: list[int] = []

    def fits(tokens: int) -> bool:
        return truth.peak_bytes(tokens // 512, 512) <= free_gib * GIB

    def try_out(tokens: int) -> bool:
        tried.append(tokens)
        return fits(tokens)

    found = largest_fitting(BUDGETS, believed, free_gib * GIB, 512, try_out)
    predicted = [b for b in BUDGETS if b <= largest_budget(believed, free_gib * GIB, 512)] or BUDGETS[:1]
    assert found == max((b for b in predicted if fits(b)), default=None)
    assert tried == sorted(set(tried), reverse=True)
    assert (tried[-1] == found) if found is not None else not any(map(fits, predicted))


def test_a_right_model_needs_one_trial() -> None:
    truth = MemoryModel(2 * GIB, 60_000, 100)
    tried: list[int] = []
    found = largest_fitting(
        BUDGETS, fit(samples_of(truth)), 8 * GIB, 512, lambda b: not tried.append(b) and b * 111_200 < 6 * GIB
    )
    assert tried == [found] == [32_768]


# -- rate and set-up


def test_efficiencies_give_back_the_rates_that_they_come_from() -> None:
    """BERT-base on 2 cores: 2,077 tokens/s in fp32 and 3,951 in bf16, packed; OpenVINO's int8 5,825."""
    lengths = np.full(1_000, 50)
    for backend, layout, precision, gemm, seen in (
        ("torch", "packed", "fp32", 481e9, 2_077),
        ("torch", "packed", "bf16", 974e9, 3_951),
        ("torch", "padded", "fp32", 481e9, 931),
        ("openvino", "padded", "int8", 1_830e9, 5_825),
    ):
        share = efficiency("cpu", backend, layout, precision)
        assert 0 < share < 1
        assert predicted_rate(BERT_BASE, lengths, gemm, None, 0, 1_024, share) == pytest.approx(seen, rel=0.01)


def test_a_batch_takes_as_long_as_the_slower_of_products_and_weights() -> None:
    lengths = np.full(64, 16)  # 1,024 tokens: 4 batches of 256
    by_products = predicted_rate(ModelCost(per_token=1e6), lengths, 1e9, 1e12, int(4e11), 256, 0.5)
    assert by_products == pytest.approx(1_024 / (4 * (256 * 1e6 / 0.5e9 + BATCH_OVERHEAD_S)))
    by_weights = predicted_rate(ModelCost(per_token=1e6), lengths, 1e15, 1e9, int(2e9), 256, 0.5)
    assert by_weights == pytest.approx(1_024 / (4 * (2.0 + BATCH_OVERHEAD_S)))
    assert predicted_rate(ModelCost(per_token=1e6), lengths, 1e15, 1e9, int(2e9), 1_024, 0.5) > 3.9 * by_weights


def test_rows_without_tokens_count_for_nothing() -> None:
    with_head = ModelCost(per_token=0.172e9, per_row=1e9)
    rate = predicted_rate(with_head, np.array([5, 0, 7, 0]), 1e12, None, 0, 64, 0.5)
    assert rate == predicted_rate(with_head, np.array([5, 7]), 1e12, None, 0, 64, 0.5)
    assert predicted_rate(BERT_BASE, np.zeros(3, np.int64), 1e12, None, 0, 64, 0.5) == 0


@pytest.mark.parametrize("device", ["cpu", "cuda", "mps"])
@pytest.mark.parametrize("backend", ["torch", "onnx", "openvino", "another"])
@pytest.mark.parametrize("layout", ["packed", "padded", "fixed", "equal"])
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16", "int8", "fp8"])
def test_every_way_has_an_efficiency(device: str, backend: str, layout: str, precision: str) -> None:
    assert 0 < efficiency(device, backend, layout, precision) < 1


def test_set_up_of_bert_base() -> None:
    of = {(b, p): setup_s(b, p, 110e6) for b in ("torch", "onnx", "openvino", "null") for p in ("fp32", "int8")}
    assert of["torch", "fp32"] == pytest.approx(2.4) and of["torch", "int8"] == pytest.approx(14.4)
    assert of["openvino", "fp32"] == pytest.approx(9.6) and of["openvino", "int8"] == pytest.approx(74.6)
    assert of["onnx", "fp32"] == pytest.approx(25) and of["null", "fp32"] == 0
    assert setup_s("onnx", "fp32", 220e6) - setup_s("onnx", "fp32", 110e6) == pytest.approx(LOAD_S + EXPORT_S["onnx"])
    assert load_s(220e6) == pytest.approx(2 * LOAD_S)
