"""question-answering: exact match and F1 of answers, by the definitions of SQuAD's official evaluation script
(Rajpurkar et al. 2018, version 2.0), as shares from 0 to 1.

Answers are texts: a shard's logits are copied to the host once, and found there as in a run."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from packhorse.errors import InputError
from packhorse.evaluating.device import DeviceValues
from packhorse.evaluating.finishing import finished
from packhorse.evaluating.labels import label_values
from packhorse.evaluating.measures import NOT_FINITE, Job, Measure, Tally
from packhorse.readers.cut import ShardRows

ARTICLES = re.compile(r"\b(a|an|the)\b")
PUNCTUATION = str.maketrans("", "", string.punctuation)
KINDS = ("answerable", "unanswerable")  # questions, by whether a label has an answer


def make(job: Job) -> Measure:
    return Answers(job)


class Answers:
    headline: tuple[str, ...] = ("exact_match", "f1")

    def __init__(self, job: Job) -> None:
        self._stages, self._column, self._tally = job.stages, job.column, Tally()
        self._sums = np.zeros((len(KINDS), 3))  # rows, exact matches, F1

    def update(self, found: DeviceValues, rows: ShardRows) -> None:
        """Raises InputError for labels that are no answers."""
        table, is_valid, not_finite = finished(found, self._stages)
        self._tally.errors[NOT_FINITE] += not_finite
        answers = _best(table)
        for i, label in enumerate(label_values(rows, self._column)):
            legal = None if label is None else [t for t in self._texts(label, rows, i) if normal(t)]
            if not is_valid[i]:
                continue
            if legal is None:
                self._tally.unlabelled += 1
                continue
            exact = max(normal(answers[i]) == normal(text) for text in legal or [""])
            f1 = max(overlap(answers[i], text) for text in legal or [""])
            self._sums[0 if legal else 1] += (1, exact, f1)
            self._tally.measured += 1

    def _texts(self, label: Any, rows: ShardRows, i: int) -> Sequence[str]:
        """A text, a list of texts, or an object with such a list named text, as SQuAD has it; none of them, or an empty
        one: there is no answer."""
        given = label.get("text") if isinstance(label, dict) else label
        texts = [given] if isinstance(given, str) else given
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            raise InputError(
                f"row {int(rows.numbers[i]):,}: column {self._column!r} holds {label!r}; legal are a text, a list of "
                "texts, and an object with such a list named text"
            )
        return texts

    def tally(self) -> Tally:
        return self._tally

    def result(self) -> Mapping[str, Any]:
        """Over all rows; and of questions with an answer and without one, where there are both."""
        result = _means(self._sums.sum(0))
        if (self._sums[:, 0] > 0).all():
            result |= {
                kind: {"rows": int(sums[0]), **_means(sums)} for kind, sums in zip(KINDS, self._sums, strict=True)
            }
        return result


def _means(sums: np.ndarray) -> dict[str, Any]:
    rows, exact, f1 = map(float, sums)
    return {"exact_match": exact / max(rows, 1), "f1": f1 / max(rows, 1)}


def _best(table: pa.Table) -> list[str]:
    """[rows]; empty where there is none."""
    if "answer" in table.column_names:
        return [answer or "" for answer in table["answer"].to_pylist()]
    return [answers[0]["answer"] if answers else "" for answers in table["answers"].to_pylist()]


def normal(text: str) -> str:
    """Small letters, without punctuation, articles and more than one space."""
    return " ".join(ARTICLES.sub(" ", text.lower().translate(PUNCTUATION)).split())


def overlap(answer: str, label: str) -> float:
    """F1 of the words that both have, each as often as in the rarer; of an empty one whether both are."""
    ours, theirs = normal(answer).split(), normal(label).split()
    if not ours or not theirs:
        return float(ours == theirs)
    common = sum((Counter(ours) & Counter(theirs)).values())
    return 2 * common / (len(ours) + len(theirs))
