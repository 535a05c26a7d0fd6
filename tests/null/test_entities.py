"""Tokens to entities, over random labels: the arithmetic against loops over tokens."""

from __future__ import annotations

import numpy as np
import pytest

from packhorse.tasks.entities import (
    Labels,
    grouped,
    is_inside_by_spaces,
    once_each,
    token_pieces,
    without_overlaps,
    word_pieces,
)

LABELS = Labels(("O", "B-PER", "I-PER", "B-LOC", "I-LOC", "PER", "MISC-X"))


def _random(num_tokens: int, sequences: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scores, the number of each token that is text's, and its sequence."""
    rng = np.random.default_rng(num_tokens)
    values = rng.random((num_tokens * 2, len(LABELS.names))).astype(np.float32)
    numbers = np.sort(rng.choice(num_tokens * 2, num_tokens, replace=False))
    return values, numbers, np.sort(rng.integers(0, sequences, num_tokens))


@pytest.mark.parametrize("num_tokens", [0, 1, 200])
def test_neighbours_of_one_tag_are_one_entity(num_tokens: int) -> None:
    values, numbers, sequence = _random(num_tokens, 20)
    found, bounds = grouped(token_pieces(values, numbers, sequence), LABELS)
    wanted: list[list[int]] = []
    best = [LABELS.names[i] for i in values[numbers].argmax(1)]
    for i, label in enumerate(best):
        tag, before = label.removeprefix("B-").removeprefix("I-"), best[i - 1].removeprefix("B-").removeprefix("I-")
        goes_on = i > 0 and sequence[i] == sequence[i - 1] and tag == before and not label.startswith("B-")
        (wanted[-1].append(i) if goes_on else wanted.append([i]))
    assert bounds.tolist() == [0, *np.cumsum([len(group) for group in wanted]).tolist()]
    assert found.first.tolist() == [numbers[group[0]] for group in wanted]
    assert found.end.tolist() == [numbers[group[-1]] + 1 for group in wanted]
    assert [LABELS.groups[i] for i in found.label] == [best[group[0]].split("-", 1)[-1] for group in wanted]
    scores = [values[numbers[group]].max(1).mean() for group in wanted]
    np.testing.assert_allclose(found.score, np.array(scores, np.float32), rtol=1e-6)


@pytest.mark.parametrize("how", ["first", "average", "max"])
@pytest.mark.parametrize("num_tokens", [0, 1, 300])
def test_tokens_of_a_word_agree_on_one_label(how: str, num_tokens: int) -> None:
    values, numbers, sequence = _random(num_tokens, 9)
    is_inside = np.random.default_rng(1).random(num_tokens) < 0.6
    found = word_pieces(values, numbers, sequence, is_inside.copy(), how)
    words: list[list[int]] = []
    for i in range(num_tokens):
        goes_on = i > 0 and is_inside[i] and sequence[i] == sequence[i - 1]
        (words[-1].append(i) if goes_on else words.append([i]))
    for i, word in enumerate(words):
        rows = values[numbers[word]]
        scores = {"first": rows[0], "average": rows.mean(0), "max": rows[rows.max(1).argmax()]}[how]
        assert (found.first[i], found.end[i]) == (numbers[word[0]], numbers[word[-1]] + 1)
        assert (found.label[i], found.sequence[i]) == (scores.argmax(), sequence[word[0]])
        assert found.score[i] == pytest.approx(scores.max(), rel=1e-6)
    assert len(found.first) == len(words)


def test_a_token_of_several_windows_is_taken_where_it_is_farthest_from_a_cut() -> None:
    spans = [(0, 0, 6), (0, 3, 9), (0, 6, 12), (1, 0, 4), (2, 0, 5), (2, 1, 6)]  # row, first place, end
    row = np.array([r for r, a, b in spans for _ in range(a, b)])
    sequence = np.array([i for i, (_, a, b) in enumerate(spans) for _ in range(a, b)])
    place = np.array([p for _, a, b in spans for p in range(a, b)])
    chosen = once_each(row, sequence, place)
    assert place[chosen].tolist() == [*range(12), *range(4), *range(6)]
    assert sequence[chosen].tolist() == [0, 0, 0, 0, 0, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3, 4, 4, 4, 5, 5, 5]


def test_of_overlapping_entities_the_longer_stays_then_the_likelier() -> None:
    entities = [  # row, start, end, score, stays
        (0, 0, 4, 0.5, False), (0, 2, 7, 0.1, True), (0, 7, 9, 0.3, False), (0, 7, 9, 0.4, True), (1, 0, 4, 0.9, True),
        (1, 3, 5, 1.0, False), (1, 4, 5, 0.2, True), (2, 0, 0, 0.2, True), (2, 0, 3, 0.2, True),
    ]  # fmt: skip
    order = np.random.default_rng(0).permutation(len(entities))
    order = order[np.lexsort((order, [entities[i][0] for i in order]))]  # as rows and, of equal starts, windows come
    row, start, end, score = (np.array([entities[i][k] for i in order]) for k in range(4))
    kept = without_overlaps(row, start, end, score.astype(np.float32))
    assert [order[i] for i in kept] == [i for i, entity in enumerate(entities) if entity[4]]


def test_a_token_is_inside_a_word_where_there_is_no_space_at_its_beginning() -> None:
    sentences = ["ab cd", "", " x", "é🙂y z"]
    places = [(row, i) for row, sentence in enumerate(sentences) for i in range(len(sentence) + 1)]
    row, start = (np.array(values) for values in zip(*places, strict=True))
    wanted = [i > 0 and " " not in sentences[r][i - 1 : i + 1] for r, i in places]
    assert is_inside_by_spaces(sentences, row, start).tolist() == wanted
