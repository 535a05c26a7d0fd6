"""The best spans of windows against the maximum over all pairs of tokens; and where answers stand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from packhorse.config import EngineConfig
from packhorse.data import ModelDescription, Tokens
from packhorse.errors import UsageError
from packhorse.sequences import Origin, Ragged, Results, Tokenized
from packhorse.tasks import spans
from packhorse.tasks.question_answering import QuestionAnswering, make, merged
from packhorse.tasks.spans import best_spans, probabilities

Found = list[tuple[int, int, int, float]]


def of_all_pairs(
    start: np.ndarray, end: np.ndarray, begins: np.ndarray, lengths: np.ndarray, most: int, count: int
) -> Found:
    """window, first, last, score: the whole matrix of each window, sorted."""
    found: Found = []
    for window, (begin, length) in enumerate(zip(begins, lengths, strict=True)):
        matrix = np.outer(start[begin : begin + length], end[begin : begin + length])
        first, last = np.nonzero(np.tril(np.triu(np.ones_like(matrix)), most - 1))
        scores = matrix[first, last]
        best = np.lexsort((last, first, -scores))[:count]
        found += [(window, int(begin + first[i]), int(begin + last[i]), float(scores[i])) for i in best]
    return found


@pytest.mark.parametrize("seed", range(40))
def test_best_spans_equal_those_of_the_whole_matrix(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(seed)
    monkeypatch.setattr(spans, "CHUNK_VALUES", int(rng.choice([1, 100, 1 << 18])))
    lengths = rng.integers(1, rng.choice([2, 5, 90]), rng.integers(1, 9))
    before = rng.integers(0, 4, len(lengths))  # tokens of no context
    ends = np.cumsum(lengths + before)
    begins = ends - lengths
    few_values = seed % 3 == 0  # so that many are equal
    start, end = (
        (rng.integers(0, 4, ends[-1]) / 4 if few_values else rng.random(ends[-1]) ** 9).astype(np.float32)
        for _ in range(2)
    )
    most, count = int(rng.choice([1, 2, 7, 15, 100])), int(rng.choice([1, 2, 12, 50]))
    made = best_spans(start, end, begins, lengths, most, count)
    columns = (made.window, made.first, made.last, made.score)
    expected = of_all_pairs(start, end, begins, lengths, most, count)
    assert list(zip(*(column.tolist() for column in columns), strict=True)) == expected


def test_no_windows_have_no_spans() -> None:
    nothing = np.empty(0, np.int64)
    made = best_spans(np.empty(0, np.float32), np.empty(0, np.float32), nothing, nothing, 15, 12)
    assert [len(column) for column in made] == [0, 0, 0, 0]


def test_probabilities_are_a_softmax_over_the_candidates_of_each_window() -> None:
    logits = np.array([1, 900, 2, 3, -5000, -5001, 7], np.float32)
    is_candidate = np.array([1, 0, 1, 1, 1, 1, 0], np.bool_)
    made = probabilities(logits, is_candidate, np.array([0, 4, 7]))
    powers = np.exp([1.0, 2.0, 3.0]), np.exp([0.0, -1.0])
    first, second = (values / values.sum() for values in powers)
    np.testing.assert_allclose(made, [first[0], 0, first[1], first[2], *second, 0], rtol=1e-6)


def test_answers_that_read_the_same_are_one() -> None:
    context = "Paris, or PARIS, or paris in France"
    found = merged(context, [0.5, 0.25, 0.125, 0.0625], [10, 0, 29, 20], [15, 5, 35, 25])
    assert found == [("PARIS", 0.8125, 10, 15), ("France", 0.125, 29, 35)]


def test_values_of_rows_in_error_may_be_missing() -> None:
    """Three rows, a window of [CLS] what [SEP] a film [SEP] each; the second has no values."""
    text = np.tile(np.array([-1, 0, -1, 1, 1, -1], np.int8), 3)
    start, end, word = (
        np.tile(np.array(v, np.int32), 3) for v in ([0, 0, 0, 0, 2, 0], [0, 4, 0, 1, 6, 0], [-1, 0, -1, 0, 1, -1])
    )
    origin = Origin(text, start, end, word, np.zeros(18, np.int64))
    tokens = Tokens(np.zeros(18, np.int32), np.array([0, 6, 12, 18]))
    tokenized = Tokenized(tokens, {}, row_of=np.arange(3), origin=origin)
    logits = np.zeros((12, 2), np.float32)
    logits[3], logits[10] = 20, 20  # a; film
    values = Ragged(logits, np.array([0, 6, 6, 12]))
    results = Results(values, np.array([True, False, True]), tokenized, ["what"] * 3, ["a film"] * 3)
    made = task(64).finish(results)
    assert [column.to_pylist() for column in (made[0], *made[2:])] == [["a", None, "film"], [0, None, 2], [1, None, 6]]
    made = task(64, top_k=2).finish(results)[0].to_pylist()
    assert [row and [answer["answer"] for answer in row] for row in made] == [["a", "a film"], None, ["film", "a film"]]


@pytest.mark.parametrize(
    ("limit", "settings", "stride"),
    [
        (512, {}, 128), (64, {}, 32), (None, {}, 128), (512, {"max_length": 100}, 50), (512, {"max_length": 512}, 128),
        (512, {"stride": 7}, 7), (512, {"stride": 0}, 0),
    ],
)  # fmt: skip
def test_windows_share_half_of_their_tokens_up_to_128(limit: int | None, settings: dict, stride: int) -> None:
    made = task(limit, **settings).sequencing()
    assert (made.long, made.stride, made.usual_length, made.cut) == ("windows", stride, 384, "second")


@pytest.mark.parametrize("long", ["truncate", "error"])
def test_texts_that_are_not_read_in_windows_may_be_as_long_as_the_model_takes(long: str) -> None:
    made = task(512, long=long).sequencing()
    assert (made.long, made.stride, made.usual_length) == (long, 0, None)


def test_no_answer_at_all_is_refused() -> None:
    with pytest.raises(UsageError, match="--top-k 0"):
        task(512, top_k=0)


def task(limit: int | None, **settings: object) -> QuestionAnswering:
    description = ModelDescription(Path("model"), None, "question-answering", 2, 64, limit)
    made = make(description, EngineConfig(model="model", **settings))
    assert isinstance(made, QuestionAnswering)
    return made
