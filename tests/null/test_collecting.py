"""Values of batches in any order, put where they belong: against lists in plain Python."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from packhorse.batching import planner
from packhorse.collecting import collector
from packhorse.counters import Counters
from packhorse.data import Batch, Float32s, Reduction, Tokens, offsets_of
from packhorse.errors import BatchRefusedError, DeviceOutOfMemoryError
from packhorse.forwarding import all_errors, run_batches, spread
from packhorse.sequences import Ragged, Tokenized
from packhorse.tokenize.dedup import unique_rows
from tests.null.test_tokens import tokens_of

MASK = 9
SEQUENCES = [[1, 2, 3], [4], [5, MASK, 6, MASK], [7, 8], [MASK]]
KINDS: dict[str, dict[str, Any]] = {
    "tokens": {"width": 2}, "spans": {"width": 2}, "vectors": {"width": 3}, "score": {"width": 1},
    "fill": {"width": 2, "top_k": 1, "mask_id": MASK}, "sparse": {"width": 3},
}  # fmt: skip


def of_kind(kind: Any) -> Reduction:
    return Reduction(kind, **KINDS[kind])


def lines(reduction: Reduction, sequence: int) -> list[list[float]]:
    """What a backend leaves of that sequence: any number of entries, or a line a token, or a mask token."""
    ids = SEQUENCES[sequence]
    count = sequence % 3 + 1 if reduction.per == "entry" else len(ids)
    count = ids.count(MASK) if reduction.per == "mask" else count
    return [[100.0 * sequence + 10 * i + j for j in range(reduction.width)] for i in range(count)]


def forwarded(reduction: Reduction, rows: list[int]) -> np.ndarray:
    """[N, width] of a batch of these sequences. The first column of entries is their number in the batch."""
    made = [
        [float(place), *line[1:]] if reduction.per == "entry" else line
        for place, row in enumerate(rows)
        for line in lines(reduction, row)
    ]
    return np.array(made, np.float32).reshape(-1, reduction.width)


def tokens() -> Tokens:
    return tokens_of(SEQUENCES)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=20)
@given(order=st.permutations(range(len(SEQUENCES))), cut=st.integers(0, 5), missing=st.integers(0, 5))
def test_batches_in_any_order_come_out_by_sequence(kind: str, order: list[int], cut: int, missing: int) -> None:
    reduction = of_kind(kind)
    collected = collector(reduction, tokens())
    batches = [rows for rows in (order[:cut], order[cut:]) if rows and missing not in rows]
    for rows in batches:
        collected.put(np.array(rows), forwarded(reduction, rows))
    found = collected.all()
    assert isinstance(found, Ragged)
    came = {row for rows in batches for row in rows}
    first = 1 if reduction.per == "entry" else 0
    wanted = [[line[first:] for line in lines(reduction, i)] if i in came else [] for i in range(len(SEQUENCES))]
    assert found.offsets.tolist() == offsets_of(np.array(list(map(len, wanted)))).tolist()
    assert found.values.tolist() == [line for row in wanted for line in row]


def test_dense_values_of_sequences_that_never_came_are_no_numbers() -> None:
    collected = collector(Reduction("pool", 2), tokens())
    collected.put(np.array([3, 0]), np.array([[1, 2], [3, 4]], np.float32))
    found = collected.all()
    assert isinstance(found, np.ndarray)
    assert found[[3, 0]].tolist() == [[1, 2], [3, 4]]
    assert np.isnan(found[[1, 2, 4]]).all()


@pytest.mark.parametrize("kind", ["pool", *KINDS])
def test_lines_too_few_too_many_or_of_another_width_are_refused(kind: Any) -> None:
    reduction = of_kind(kind) if kind in KINDS else Reduction(kind, 2)
    rows = np.array([0, 2, 4])
    right = forwarded(reduction, [0, 2, 4]) if kind in KINDS else np.zeros((3, 2), np.float32)
    wrong = [np.hstack([right, right]), right[:, 0]]
    wrong += [] if kind == "sparse" else [right[:-1], np.vstack([right, right[:1]])]
    for values in wrong:
        with pytest.raises(RuntimeError, match="the backend gave values of shape"):
            collector(reduction, tokens()).put(rows, values)


@pytest.mark.parametrize("numbers", [(0, 2), (1, 0), (-1, 0)])
def test_entries_of_other_sequences_or_out_of_order_are_refused(numbers: tuple[int, int]) -> None:
    values = np.array([[number, 5, 1] for number in numbers], np.float32)
    with pytest.raises(RuntimeError, match="entries that are not of 2 rows, one after the other"):
        collector(of_kind("sparse"), tokens()).put(np.array([0, 1]), values)


class Given:
    """An Output."""

    def __init__(self, values: Float32s) -> None:
        self._values = values

    def numpy(self) -> Float32s:
        return self._values


class Echo:
    """A LoadedModel that gives each token its id. Refuses REFUSED beside others and TOO_BAD at all; NaN for NO_NUMBER;
    more than `most` tokens do not fit."""

    REFUSED, TOO_BAD, NO_NUMBER = 20, 21, 22
    reduction = Reduction("tokens", 1)
    in_flight, is_packed = 2, True

    def __init__(self, most: int = 1_000) -> None:
        self._most = most

    def computed_tokens(self, lengths: np.ndarray) -> int:
        return int(lengths.sum())

    def forward(self, batch: Batch) -> Given:
        ids = batch.tokens.ids
        if len(ids) > self._most:
            raise DeviceOutOfMemoryError(f"{len(ids)} tokens")
        if self.TOO_BAD in ids or (self.REFUSED in ids and batch.num_rows > 1):
            raise BatchRefusedError("not these")
        return Given(np.where(ids == self.NO_NUMBER, np.nan, ids)[:, None].astype(np.float32))


ROWS_OF = [0, 0, 1, 2, 2, 3, 5]  # row 4 has no sequence
OF_ROWS = [[1, 2], [3, 20], [4, 5, 6], [7], [21, 8, 9], [1, 22], [1, 2]]


def computed(most: int, sizes: int) -> tuple[Ragged, dict[int, str]]:
    """Values of the sequences, and errors of rows by their kind. sizes: most tokens of a batch."""
    tokens = tokens_of(OF_ROWS)
    tokenized, unique = Tokenized(tokens, {}, row_of=np.array(ROWS_OF)), unique_rows(tokens)
    plan = planner("packed")(tokens.lengths[unique.rows], sizes, None)
    model: Any = Echo(most)
    found, failed = run_batches(tokens, unique, plan, model, lambda *_: None, Counters())
    values = spread(found, unique, tokens.num_rows)
    assert isinstance(values, Ragged)
    errors = all_errors(values, tokenized, unique, failed, 1e30)
    return values, {row: error.kind for row, error in errors.items()}


@pytest.mark.parametrize("sizes", [3, 5, 100])
def test_a_refused_batch_runs_row_by_row_and_a_row_is_in_error_with_one_of_its_sequences(sizes: int) -> None:
    values, errors = computed(1_000, sizes)
    assert errors == {2: "refused_by_model", 3: "not_finite"}
    wanted = [ids if Echo.TOO_BAD not in ids else [] for ids in OF_ROWS]
    assert values.lengths.tolist() == list(map(len, wanted))
    right = ~np.isnan(values.values[:, 0])
    ids = np.array([i for sequence in wanted for i in sequence])
    assert values.values[right, 0].tolist() == ids[right].tolist()
    assert ids[~right].tolist() == [Echo.NO_NUMBER]


def test_what_does_not_fit_is_tried_again_unless_it_is_one_row() -> None:
    with pytest.raises(DeviceOutOfMemoryError):
        computed(2, 100)
    values, errors = computed(2, 1)  # a row a batch
    assert errors == {1: "out_of_memory", 2: "out_of_memory", 3: "not_finite"}
    assert values.lengths.tolist() == [2, 2, 0, 1, 0, 2, 2]
