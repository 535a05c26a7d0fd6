"""token-classification: F1 of entities, and accuracy of tags, on texts that are lists of words with a list of tags.

A word has the tag of its first token. A word that was cut off, or that makes no token, has none of a type: O, where the
model has that label.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from packhorse.data import Bools, Int64s, ranges
from packhorse.errors import InputError
from packhorse.evaluating.device import DeviceValues, device_of, moved
from packhorse.evaluating.entity_state import OUTSIDE, Entities, Tags
from packhorse.evaluating.labels import FAILED, NONE, Labels
from packhorse.evaluating.measures import Job, Measure, Tally
from packhorse.evaluating.states import RowCounts, on
from packhorse.readers.cut import ShardRows

WITH_OUTSIDE = ("f1", "precision", "recall", "accuracy")


def make(job: Job) -> Measure:
    return Tagging(job)


class Tagging:
    def __init__(self, job: Job) -> None:
        names, device = job.description.labels, device_of(job.stages.model)
        self._labels, self._tags = Labels(names, job.column), Tags.of(names)
        self._outside = names.index(OUTSIDE) if OUTSIDE in names else NONE
        self.headline: tuple[str, ...] = WITH_OUTSIDE if OUTSIDE in names else ("accuracy", "f1")
        self._rows, self._state = on(RowCounts(), device), on(Entities(self._tags), device)
        self._without_token = 0

    def update(self, found: DeviceValues, rows: ShardRows) -> None:
        """Raises InputError where a row has not as many tags as words."""
        tags = self._checked(self._labels.tags(rows), found, rows)
        kinds = np.array([NONE if t is None else 0 for t in tags], np.int64)
        kinds[list(found.errors)] = FAILED
        counts = np.array([len(t or ()) for t in tags], np.int64)
        counts[kinds < 0] = 0
        device = found.values.device
        is_finite = self._finite(found, len(counts))
        of_rows = moved(kinds, device)
        self._rows.update(of_rows, is_finite)
        row_of = moved(np.repeat(np.arange(len(counts)), counts), device)
        true = [tag for t, count in zip(tags, counts, strict=True) if count for tag in t or ()]
        labels = moved(np.array(true, np.int64), device)
        self._state.update(self._predicted(found, counts), labels, row_of, is_finite[row_of])

    def _predicted(self, found: DeviceValues, counts: Int64s) -> torch.Tensor:
        """[words] tags of all words of rows that have labels."""
        line, word = first_tokens(found, counts)
        self._without_token += int(counts.sum()) - len(word)
        device = found.values.device
        predicted = torch.full((int(counts.sum()),), self._outside, dtype=torch.int64, device=device)
        best = found.values.argmax(1)
        return predicted.index_copy_(0, moved(word, device), best[moved(line, device)])

    def _finite(self, found: DeviceValues, num_rows: int) -> torch.Tensor:
        """[rows] whether all values are."""
        lengths, row_of = np.diff(found.offsets), found.tokenized.row_of
        row = np.repeat(np.arange(len(lengths)) if row_of is None else row_of, lengths)
        wrong = (~torch.isfinite(found.values).all(1)).to(torch.int64)
        return wrong.new_zeros(num_rows).index_add_(0, moved(row, wrong.device), wrong) == 0

    def _checked(self, tags: list[list[int] | None], found: DeviceValues, rows: ShardRows) -> list[list[int] | None]:
        for i, (words, given) in enumerate(zip(found.texts.texts, tags, strict=True)):
            if given is None or words is None:
                continue
            if not isinstance(words, list) or len(words) != len(given):
                seen = f"{len(words)} words" if isinstance(words, list) else "a text that is not a list of words"
                raise InputError(f"row {int(rows.numbers[i]):,}: {len(given)} tags, and {seen}: there must be as many")
        return tags

    def tally(self) -> Tally:
        return Tally.of(self._rows.compute())

    def result(self) -> Mapping[str, Any]:
        """precision, recall and f1 of all entities together, f1_macro the mean over types that occur on either side;
        accuracy of tags, a word each."""
        counts, words = (state.cpu().numpy().astype(np.float64) for state in self._state.compute())
        of_types = [_scores(row) for row in counts]
        occurring = [scores["f1"] for scores, row in zip(of_types, counts, strict=True) if row[:2].any()]
        return {
            **_scores(counts.sum(0)), "f1_macro": float(np.mean(occurring)) if occurring else 0.0,
            "accuracy": float(words[0] / max(words[1], 1)), "words": int(words[1]),
            "words_without_token": self._without_token,
            "labels": [{"label": n, **scores} for n, scores in zip(self._tags.names, of_types, strict=True)],
        }  # fmt: skip


def first_tokens(found: DeviceValues, counts: Int64s) -> tuple[Int64s, Int64s]:
    """The line of the first token of each word that has one, and the word's number among all; counts: words of each
    row, 0 of one that does not count. Of windows the first that has the word's first token counts."""
    origin, row_of = found.tokenized.origin, found.tokenized.row_of
    assert origin is not None
    lengths = np.diff(found.offsets)
    row = np.repeat(np.arange(len(lengths)) if row_of is None else row_of, lengths)
    token = _tokens_of_lines(found)
    of_token = origin.word[token]
    is_text: Bools = (of_token >= 0) & (of_token < counts[row])
    lines = np.flatnonzero(is_text)
    number = (np.cumsum(counts) - counts)[row[lines]] + of_token[lines]
    words, first = np.unique(number, return_index=True)
    return lines[first], words


def _tokens_of_lines(found: DeviceValues) -> Int64s:
    """[lines] the token of each line of values: sequences that the model refused have none."""
    return ranges(found.tokenized.tokens.offsets[:-1], np.diff(found.offsets))


def _scores(counts: np.ndarray) -> dict[str, Any]:
    """Of predicted, true and common entities; 0 of nothing."""
    predicted, true, both = map(float, counts)
    return {
        "precision": both / predicted if predicted else 0.0, "recall": both / true if true else 0.0,
        "f1": 2 * both / (predicted + true) if predicted + true else 0.0, "support": int(true),
    }  # fmt: skip
