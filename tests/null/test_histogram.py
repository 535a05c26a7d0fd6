"""Rows by length, a batch's tokens on its rows, and points of a long run: against plain Python."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from packhorse.histogram import BUCKETS, by_length, shares
from packhorse.timeline import MAX_POINTS, Timeline

lengths_lists = st.lists(st.integers(0, 20_000), max_size=60)


def bucket_of(length: int) -> str:
    for bucket in BUCKETS[:-1]:
        first, last = map(int, bucket.split("-"))
        if first <= length <= last:
            return bucket
    assert length >= int(BUCKETS[-1].removesuffix("+"))
    return BUCKETS[-1]


@given(lengths_lists)
def test_each_row_is_in_the_bucket_whose_name_holds_its_length(lengths: list[int]) -> None:
    array = np.array(lengths, np.int64)
    rows = Counter(bucket_of(n) for n in lengths if n)
    tokens: Counter[str] = Counter()
    for n in lengths:
        if n:
            tokens[bucket_of(n)] += 3 * n
    assert by_length(array) == rows and by_length(array, 3 * array) == tokens
    assert list(by_length(array)) == [b for b in BUCKETS if b in rows]


@given(st.lists(st.integers(1, 5_000), min_size=1, max_size=40), st.integers(0, 500), st.booleans())
def test_what_a_batch_computed_is_its_rows_together(lengths: list[int], more: int, is_packed: bool) -> None:
    computed = (sum(lengths) if is_packed else max(lengths) * len(lengths)) + more
    own = shares(np.array(lengths, np.int64), computed, is_packed)
    assert own.sum() == computed
    weights = lengths if is_packed else [1] * len(lengths)
    for share, weight in zip(own, weights, strict=True):
        assert abs(share - computed * weight / sum(weights)) <= 1


def test_packed_rows_without_padding_take_up_their_own_length() -> None:
    assert shares(np.array([7, 1, 30]), 38, is_packed=True).tolist() == [7, 1, 30]


@pytest.mark.parametrize("seconds", [3, 239, 240, 241, 1_000, 864_000])
def test_a_run_of_any_length_keeps_few_points_evenly_spread_and_its_end(seconds: int) -> None:
    line = Timeline(started=0.0)
    for i in range(1, seconds * 2 if seconds < 2_000 else seconds + 1):  # a batch each half second
        line.add(i, now=i / 2 if seconds < 2_000 else i)
    line.add(10**9, is_last=True, now=seconds)
    assert len(line.points) <= MAX_POINTS and len(line.points) >= min(seconds, MAX_POINTS // 2) - 1
    assert line.points[-1] == (seconds, 10**9)
    steps = np.diff([0.0, *(at for at, _ in line.points)])
    assert steps.min() > 0 and np.all(steps[:-1] >= 1) and steps.max() <= 2 * max(1.0, line.interval_s)


def test_points_of_a_shard_that_is_computed_again_are_dropped() -> None:
    line = Timeline(started=0.0)
    for i in range(1, 10):
        line.add(i * 10, i * 100, now=float(i))
    line.drop_beyond(40, 400)
    assert [total for _, total, _ in line.points] == [10, 20, 30, 40]
    line.add(50, 500, now=12.0)
    assert line.points[-1] == (12.0, 50, 500)
