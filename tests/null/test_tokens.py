"""Flat tokens behave like a list of lists."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from packhorse.data import Batch, Tokens, offsets_of
from packhorse.model_cost import AttentionCost, ModelCost

Rows = list[list[int]]
ROWS = st.lists(st.lists(st.integers(0, 30_000), max_size=6), max_size=12)


def tokens_of(rows: Rows, type_ids: Rows | None = None) -> Tokens:
    offsets = np.cumsum([0, *map(len, rows)], dtype=np.int64)
    flat = np.array([t for row in rows for t in row], np.int32)
    types = None if type_ids is None else np.array([t for row in type_ids for t in row], np.int32)
    return Tokens(flat, offsets, types)


def lists(flat: np.ndarray, offsets: np.ndarray) -> Rows:
    return [flat[a:b].tolist() for a, b in pairwise(offsets)]


@given(ROWS)
def test_offsets_and_lengths_are_those_of_the_rows(rows: Rows) -> None:
    tokens = tokens_of(rows)
    assert tokens.num_rows == len(rows)
    assert tokens.lengths.tolist() == [len(row) for row in rows]
    assert offsets_of(tokens.lengths).tolist() == tokens.offsets.tolist()


@given(ROWS, st.data())
def test_take_gives_the_rows_asked_for_in_the_order_asked_for(rows: Rows, data: st.DataObject) -> None:
    which = data.draw(st.lists(st.integers(0, len(rows) - 1), max_size=15)) if rows else []
    doubled = [[2 * t for t in row] for row in rows]
    taken = tokens_of(rows, doubled).take(np.array(which, np.int64))
    assert taken.type_ids is not None
    assert lists(taken.ids, taken.offsets) == [rows[i] for i in which]
    assert lists(taken.type_ids, taken.offsets) == [doubled[i] for i in which]


def test_take_of_no_row_is_empty() -> None:
    taken = tokens_of([[1, 2], [3]]).take(np.array([], np.int64))
    assert (taken.num_rows, len(taken.ids), taken.type_ids) == (0, 0, None)


@given(ROWS.filter(bool))
def test_a_padded_batch_has_each_row_at_the_left_and_pads_at_the_right(rows: Rows) -> None:
    ids, mask, type_ids = Batch(tokens_of(rows, rows)).padded(pad_id=99)
    longest = max(map(len, rows))
    assert ids.tolist() == [row + [99] * (longest - len(row)) for row in rows]
    assert mask.tolist() == [[True] * len(row) + [False] * (longest - len(row)) for row in rows]
    assert type_ids is not None
    assert type_ids.tolist() == [row + [0] * (longest - len(row)) for row in rows]


def test_a_batch_knows_its_size() -> None:
    batch = Batch(tokens_of([[1, 2, 3], [], [4]]))
    assert (batch.num_rows, batch.max_seqlen, batch.real_tokens) == (3, 3, 4)
    assert batch.padded(0)[2] is None


def test_flops_are_linear_a_token_and_a_row_and_square_in_the_length() -> None:
    cost = ModelCost(per_token=10, per_row=100, attention=(AttentionCost(1.0),))
    assert cost.flops(np.array([3, 4])) == 70 + 200 + 25
