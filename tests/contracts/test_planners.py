"""One suite over every planner, then what each of them promises alone."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from packhorse.batching import planner
from packhorse.data import BatchPlan

LENGTHS = st.lists(st.integers(1, 40), max_size=60)
BUDGET = st.integers(1, 200)
BATCH_SIZE = st.none() | st.integers(1, 20)
POLICIES = ("packed", "padded", "fixed")


def plan(policy: str, lengths: list[int], budget: int, batch_size: int | None) -> BatchPlan:
    return planner(policy)(np.array(lengths, np.int64), budget, batch_size)


def batches(made: BatchPlan) -> list[list[int]]:
    return [made.rows(b).tolist() for b in range(made.num_batches)]


@pytest.mark.parametrize("policy", POLICIES)
@given(LENGTHS, BUDGET, BATCH_SIZE)
def test_every_row_is_in_one_batch(policy: str, lengths: list[int], budget: int, batch_size: int | None) -> None:
    made = plan(policy, lengths, budget, batch_size)
    assert sorted(made.order.tolist()) == list(range(len(lengths)))
    assert [row for batch in batches(made) for row in batch] == made.order.tolist()
    assert made.cuts[0] == 0 and made.cuts[-1] == len(lengths)
    assert (np.diff(made.cuts) > 0).all()


@pytest.mark.parametrize("policy", POLICIES)
@given(LENGTHS, BUDGET, BATCH_SIZE)
def test_the_same_input_gives_the_same_plan(policy: str, lengths: list[int], budget: int, size: int | None) -> None:
    made, again = (plan(policy, lengths, budget, size) for _ in range(2))
    assert made.fingerprint() == again.fingerprint()
    assert made.order.dtype == np.int64 and made.cuts.dtype == np.int64


@pytest.mark.parametrize("policy", POLICIES)
def test_another_order_or_another_cut_has_another_fingerprint(policy: str) -> None:
    made = plan(policy, [3, 3, 3, 3], 6, 2)
    other_order = BatchPlan(made.order[::-1].copy(), made.cuts)
    other_cuts = BatchPlan(made.order, np.array([0, 1, 4]))
    assert len({p.fingerprint() for p in (made, other_order, other_cuts)}) == 3


@pytest.mark.parametrize("policy", POLICIES)
def test_no_rows_need_no_batch(policy: str) -> None:
    made = plan(policy, [], 100, None)
    assert (made.num_batches, made.order.tolist(), made.cuts.tolist()) == (0, [], [0])


@pytest.mark.parametrize("policy", POLICIES)
@given(LENGTHS, BUDGET, st.integers(1, 20))
def test_no_batch_has_more_rows_than_asked_for(policy: str, lengths: list[int], budget: int, batch_size: int) -> None:
    assert all(len(batch) <= batch_size for batch in batches(plan(policy, lengths, budget, batch_size)))


@given(LENGTHS, BUDGET, BATCH_SIZE)
def test_padded_keeps_the_budget_or_runs_one_row(lengths: list[int], budget: int, batch_size: int | None) -> None:
    for batch in batches(plan("padded", lengths, budget, batch_size)):
        assert len(batch) == 1 or len(batch) * max(lengths[row] for row in batch) <= budget


@given(LENGTHS, BUDGET, BATCH_SIZE)
def test_padded_leaves_no_room_for_one_more_row(lengths: list[int], budget: int, batch_size: int | None) -> None:
    made = batches(plan("padded", lengths, budget, batch_size))
    for batch in made[:-1]:
        assert (len(batch) + 1) * lengths[batch[0]] > budget or len(batch) == batch_size


@given(LENGTHS, BUDGET, BATCH_SIZE)
def test_packed_keeps_the_budget_of_real_tokens_or_runs_one_row(
    lengths: list[int], budget: int, batch_size: int | None
) -> None:
    for batch in batches(plan("packed", lengths, budget, batch_size)):
        assert len(batch) == 1 or sum(lengths[row] for row in batch) <= budget


@given(LENGTHS, BUDGET, BATCH_SIZE)
def test_packed_leaves_no_room_for_one_more_row(lengths: list[int], budget: int, batch_size: int | None) -> None:
    made = batches(plan("packed", lengths, budget, batch_size))
    for batch, following in pairwise(made):
        tokens = sum(lengths[row] for row in [*batch, following[0]])
        assert tokens > budget or len(batch) == batch_size


def test_packed_runs_a_row_longer_than_the_budget_alone() -> None:
    assert batches(plan("packed", [3, 50, 4, 3], 10, None)) == [[1], [2, 0, 3]]


def test_packed_counts_no_padding() -> None:
    assert batches(plan("packed", [9, 1, 1, 1], 12, None)) == [[0, 1, 2, 3]]
    assert len(batches(plan("padded", [9, 1, 1, 1], 12, None))) == 2


@pytest.mark.parametrize("policy", ["packed", "padded"])
@given(LENGTHS, BUDGET, BATCH_SIZE)
def test_the_longest_come_first_and_equals_in_input_order(
    policy: str, lengths: list[int], budget: int, batch_size: int | None
) -> None:
    order = plan(policy, lengths, budget, batch_size).order.tolist()
    assert order == sorted(range(len(lengths)), key=lambda row: (-lengths[row], row))


@given(LENGTHS, BUDGET, st.integers(1, 20))
def test_fixed_takes_so_many_rows_in_input_order(lengths: list[int], budget: int, batch_size: int) -> None:
    rows = list(range(len(lengths)))
    expected = [rows[i : i + batch_size] for i in range(0, len(rows), batch_size)]
    assert batches(plan("fixed", lengths, budget, batch_size)) == expected


def test_fixed_takes_32_rows_unless_told() -> None:
    assert [len(batch) for batch in batches(plan("fixed", [1] * 70, 1, None))] == [32, 32, 6]
