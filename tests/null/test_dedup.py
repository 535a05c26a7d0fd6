"""Dedup against a dict of tuples."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from packhorse.tokenize.dedup import all_rows, num_duplicates, unique_rows
from tests.null.test_tokens import Rows, tokens_of

# Few different ids and lengths, so that many rows are equal, or equal but for one place.
SIMILAR_ROWS = st.lists(st.lists(st.integers(0, 2), max_size=3), max_size=40)


def reference(rows: list[tuple]) -> tuple[list[int], list[int]]:
    """First row of each kind in order, and for each row the place of its kind among them; -1 for an empty row."""
    first: dict[tuple, int] = {}
    for i, row in enumerate(rows):
        if row:
            first.setdefault(row, i)
    place = {row: u for u, row in enumerate(first)}
    return list(first.values()), [place.get(row, -1) for row in rows]


@given(SIMILAR_ROWS)
def test_equal_ids_share_the_first_of_them(rows: Rows) -> None:
    unique = unique_rows(tokens_of(rows))
    assert (unique.rows.tolist(), unique.inverse.tolist()) == reference([tuple(row) for row in rows])


@given(SIMILAR_ROWS, st.data())
def test_equal_ids_with_other_type_ids_are_different_rows(rows: Rows, data: st.DataObject) -> None:
    types = [data.draw(st.lists(st.integers(0, 1), min_size=len(row), max_size=len(row))) for row in rows]
    unique = unique_rows(tokens_of(rows, types))
    pairs = [tuple(zip(row, kind, strict=True)) for row, kind in zip(rows, types, strict=True)]
    assert (unique.rows.tolist(), unique.inverse.tolist()) == reference(pairs)


@given(SIMILAR_ROWS)
def test_without_dedup_every_row_with_tokens_stands_for_itself(rows: Rows) -> None:
    unique = all_rows(tokens_of(rows))
    assert unique.rows.tolist() == [i for i, row in enumerate(rows) if row]
    assert [unique.rows[u] if u >= 0 else -1 for u in unique.inverse] == [
        i if row else -1 for i, row in enumerate(rows)
    ]


def test_many_rows_of_many_lengths() -> None:
    rng = np.random.default_rng(0)
    rows = [rng.integers(0, 3, rng.integers(0, 9)).tolist() for _ in range(5_000)]
    unique = unique_rows(tokens_of(rows))
    assert (unique.rows.tolist(), unique.inverse.tolist()) == reference([tuple(row) for row in rows])


@given(SIMILAR_ROWS, st.data())
def test_a_row_is_a_duplicate_where_others_stand_for_all_of_its_sequences(sequences: Rows, data: st.DataObject) -> None:
    row_of = sorted(data.draw(st.lists(st.integers(0, 5), min_size=len(sequences), max_size=len(sequences))))
    seen: set[tuple] = set()
    news: dict[int, bool] = {}
    for row, ids in zip(row_of, map(tuple, sequences), strict=True):
        if ids:
            news[row] = news.get(row, False) or ids not in seen
            seen.add(ids)
    unique = unique_rows(tokens_of(sequences))
    assert num_duplicates(unique, np.array(row_of, np.int64)) == len(news) - sum(news.values())
    assert num_duplicates(unique, None) == sum(map(bool, sequences)) - len(unique.rows)
