"""Where shards end: the same rows however they come in chunks, and wherever reading began."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from packhorse.data import Chunk, Position, RowError
from packhorse.readers.cut import ShardRows, cut_shards, rows_allowed

MIB = 1 << 20
MAX_TEXT, MAX_ROW, MAX_OUTPUT = 16 * MIB, 256 * MIB, 256 * MIB

# A row: bytes of text, and what all its columns weigh (a number alone: no memory is needed for it).
ROWS = st.lists(st.tuples(st.integers(0, 9), st.integers(1, 130 * MIB)), max_size=40)
CHUNKS = st.lists(st.integers(1, 9), min_size=1, max_size=8)


def chunks_of(rows: Sequence[tuple[int, int]], sizes: Sequence[int], first: int = 0) -> Iterator[Chunk]:
    """Rows from `first` on, in chunks of these sizes over and over. The mark of row i is 10 i."""
    at, turn = first, 0
    while at < len(rows):
        some = rows[at : at + sizes[turn % len(sizes)]]
        table = pa.table(
            {"id": range(at, at + len(some)), "text": pa.array(["x" * n for n, _ in some], pa.large_string())}
        )
        marks = 10 * np.arange(at, at + len(some) + 1)
        yield Chunk(table, 0, marks, np.array([w for _, w in some]), {0: RowError("first", f"row {at}")})
        at, turn = at + len(some), turn + 1


def cut(
    rows: Sequence[tuple[int, int]], sizes: Sequence[int] = (1_000,), shard_rows: int | None = None,
    limit: int | None = None, first: int = 0, index: int = 0, width: int = 4,
) -> list[ShardRows]:  # fmt: skip
    chunks = chunks_of(rows, sizes, first)
    return list(cut_shards(chunks, Position(0, 10 * first), index, first, ["text"], shard_rows, width, limit))


def row_numbers(shards: Sequence[ShardRows]) -> list[list[int]]:
    return [shard.table["id"].to_pylist() for shard in shards]


def one_by_one(rows: Sequence[tuple[int, int]], shard_rows: int, limit: int | None) -> list[list[int]]:
    """The rule of the design, a row at a time."""
    shards: list[list[int]] = []
    text = weight = 0
    for i, (text_bytes, row_bytes) in enumerate(rows[:limit]):
        is_full = shards and (
            len(shards[-1]) == shard_rows or text + text_bytes > MAX_TEXT or weight + row_bytes > MAX_ROW
        )
        if is_full or not shards:
            shards.append([])
            text = weight = 0
        shards[-1].append(i)
        text, weight = text + text_bytes, weight + row_bytes
    return shards


@given(ROWS, CHUNKS, st.integers(1, 12), st.none() | st.integers(0, 50))
def test_shards_are_cut_by_the_rule_whatever_the_chunks(
    rows: list[tuple[int, int]], sizes: list[int], shard_rows: int, limit: int | None
) -> None:
    assert row_numbers(cut(rows, sizes, shard_rows, limit)) == one_by_one(rows, shard_rows, limit)


@given(ROWS, CHUNKS, CHUNKS, st.integers(1, 12), st.none() | st.integers(0, 50))
def test_cutting_goes_on_alike_after_every_shard(
    rows: list[tuple[int, int]], sizes: list[int], other_sizes: list[int], shard_rows: int, limit: int | None
) -> None:
    whole = cut(rows, sizes, shard_rows, limit)
    for i, done in enumerate(whole, start=1):
        rest = cut(rows, other_sizes, shard_rows, limit, first=done.shard.end.mark // 10, index=i)
        assert [shard.shard for shard in rest] == [shard.shard for shard in whole[i:]]


@given(ROWS, CHUNKS, st.integers(1, 12))
def test_shards_name_their_rows_and_where_they_stand(
    rows: list[tuple[int, int]], sizes: list[int], shard_rows: int
) -> None:
    shards = cut(rows, sizes, shard_rows)
    for index, shard in enumerate(shards):
        numbers = shard.table["id"].to_pylist()
        assert (shard.shard.index, shard.shard.first_row, shard.shard.num_rows) == (index, numbers[0], len(numbers))
        assert shard.shard.start == Position(0, 10 * numbers[0])
        assert shard.shard.end == Position(0, 10 * (numbers[-1] + 1))


@given(ROWS, CHUNKS, st.integers(1, 12))
def test_errors_stay_with_their_rows(rows: list[tuple[int, int]], sizes: list[int], shard_rows: int) -> None:
    in_error = [chunk.table["id"][0].as_py() for chunk in chunks_of(rows, sizes)]
    found = [
        (shard.shard.first_row + at, error.message)
        for shard in cut(rows, sizes, shard_rows)
        for at, error in sorted(shard.errors.items())
    ]
    assert found == [(row, f"row {row}") for row in in_error]


def test_the_first_shards_ramp_up() -> None:
    shards = cut([(1, 1)] * 90_000, sizes=(16_384,))
    assert [shard.shard.num_rows for shard in shards] == [1_024, 4_096, 16_384, 65_536, 2_960]


def test_a_resumed_run_does_not_ramp_again() -> None:
    shards = cut([(1, 1)] * 90_000, sizes=(10_000,), first=5_120, index=2)
    assert [shard.shard.num_rows for shard in shards] == [16_384, 65_536, 2_960]


def test_a_shard_ends_before_16_mib_of_text() -> None:
    rows = [(6 * MIB, 1)] * 5
    assert row_numbers(cut(rows, sizes=(2, 3))) == [[0, 1], [2, 3], [4]] == one_by_one(rows, 1_024, None)


def test_text_that_fills_a_shard_exactly_is_one_shard() -> None:
    assert row_numbers(cut([(8 * MIB, 1), (8 * MIB, 1), (0, 1), (1, 1)])) == [[0, 1, 2], [3]]


def test_a_huge_row_is_a_shard_of_its_own() -> None:
    huge = (17 * MIB, 1)
    assert row_numbers(cut([(1, 1), huge, (1, 1), (0, 1)])) == [[0], [1], [2, 3]]
    assert row_numbers(cut([(1, 300 * MIB), (1, 1), (1, 300 * MIB)])) == [[0], [1], [2]]


def test_wide_outputs_make_shards_of_fewer_rows() -> None:
    assert rows_allowed(9, None, 4) == 65_536
    assert rows_allowed(9, None, 4 * 4_096) == MAX_OUTPUT // (4 * 4_096) == 16_384
    assert rows_allowed(0, None, 4 * 4_096) == 1_024
    assert rows_allowed(9, None, MAX_OUTPUT + 1) == 1


def test_asked_for_rows_hold_for_every_shard() -> None:
    assert [rows_allowed(index, 7, 4) for index in range(4)] == [7] * 4


def test_no_rows_make_no_shard() -> None:
    assert cut([]) == cut([(1, 1)] * 5, limit=0) == []


def test_the_limit_counts_from_the_first_row_of_the_input() -> None:
    assert row_numbers(cut([(1, 1)] * 20, shard_rows=4, limit=10, first=8, index=2)) == [[8, 9]]
