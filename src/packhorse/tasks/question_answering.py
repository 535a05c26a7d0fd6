"""question-answering: the piece of a context that answers a question, as transformers 4's pipeline finds it.

The context is read in windows of up to 384 tokens (--max-length), the question before each, that share half as many
with the one before, 128 at most (--stride). In each window the logits of beginning and end become probabilities, by a
softmax over the context's tokens and the first special token, where there is one: it stands for "no answer". A span of
up to max_answer_len tokens of the context has the probability of its first token times that of its last. Of each window
the best 2 * top_k + 10 are widened to whole words, as the tokenizer splits them; the scores of those that read the
same, but for case, are added, over all windows, and the first of them says where the answer stands. So a score can be
above 1 where windows overlap. With handle_impossible_answer the empty answer is one more, with the least score that a
window gives it.

Other than that pipeline, what is no span (one that ends before it begins, or the special token) never fills up a list
of answers: where there are fewer than top_k, there are fewer. A special token's name that stands in a question is no
candidate, and the question comes first whichever side a tokenizer pads on.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pyarrow as pa

from packhorse.config import EngineConfig
from packhorse.data import Bools, Int64s, ModelDescription, Reduction, offsets_of
from packhorse.errors import UsageError
from packhorse.sequences import Origin, Ragged, Results, Sequencing
from packhorse.stages import Task
from packhorse.tasks.spans import Spans, best_spans, probabilities

USUAL_LENGTH, MAX_STRIDE = 384, 128  # tokens
CONTEXT, SPECIAL = 1, -1  # in Origin.text
ANSWER = [
    pa.field("answer", pa.large_string()), pa.field("score", pa.float32()), pa.field("start", pa.int32()),
    pa.field("end", pa.int32()),
]  # fmt: skip


class Answer(NamedTuple):
    """In the order of the columns. start, end: characters of the context."""

    answer: str
    score: float
    start: int
    end: int


class Windows(NamedTuple):
    """Those of rows that are valid: W windows, T tokens."""

    row: Int64s  # [W] ascending
    tokens: Ragged  # [T, 2] logits of beginning and end
    origin: Origin  # [T]


def make(description: ModelDescription, settings: EngineConfig) -> Task:
    """Raises UsageError for a top_k of 0."""
    if settings.top_k == 0:
        raise UsageError("--top-k 0: gives no answer: take 1, the default, or more")
    limits = [n for n in (settings.max_length or USUAL_LENGTH, description.max_length) if n]
    return QuestionAnswering(settings, min(limits))


class QuestionAnswering:
    """Columns answer, score, start and end; with a top_k above 1 one column, answers, a list of those, the best
    first."""

    name = "question-answering"
    max_value = float(np.finfo(np.float32).max)

    def __init__(self, settings: EngineConfig, max_length: int) -> None:
        """max_length: tokens of a window."""
        self._top_k = settings.top_k or 1
        self._max_answer_len, self._no_answer = settings.max_answer_len, settings.handle_impossible_answer
        self._long = "windows" if settings.long == "auto" else settings.long
        self._stride = min(max_length // 2, MAX_STRIDE) if settings.stride is None else settings.stride

    def reduction(self) -> Reduction:
        return Reduction("spans", 2)

    def sequencing(self) -> Sequencing:
        """Texts that are cut, or refused, may be as long as the model takes."""
        is_read_whole = self._long == "windows"
        return Sequencing(
            long=self._long, stride=self._stride if is_read_whole else 0, cut="second", is_aligned=True,
            needs=("question", "context"), usual_length=USUAL_LENGTH if is_read_whole else None,
        )  # fmt: skip

    def fields(self, width: int) -> list[pa.Field]:
        return ANSWER if self._top_k == 1 else [pa.field("answers", pa.list_(pa.struct(ANSWER)))]

    def finish(self, results: Results) -> list[pa.Array]:
        """Of logits [tokens, 2]."""
        found: list[list[Answer] | None] = [None] * results.num_rows
        windows = _valid(results)
        if len(windows.row):
            assert results.pairs is not None
            spans, nothing = self._spans(windows)
            start, end = characters(spans, windows)
            rows, firsts = np.unique(windows.row[spans.window], return_index=True)
            least = np.minimum.reduceat(nothing, np.searchsorted(windows.row, rows)).tolist()
            bounds = [*firsts.tolist(), len(start)]
            given = (spans.score.tolist(), start.tolist(), end.tolist())
            for i, row in enumerate(rows.tolist()):
                answers = merged(results.pairs[row], *(values[bounds[i] : bounds[i + 1]] for values in given))
                found[row] = self._best(answers, least[i])
        return self._columns(found)

    def _best(self, answers: list[Answer], nothing: float) -> list[Answer]:
        """nothing: the score of no answer. Of equal scores the first."""
        made = [*answers, Answer("", nothing, 0, 0)] if self._no_answer else answers
        return sorted(made, key=lambda answer: answer.score, reverse=True)[: self._top_k]

    def _spans(self, windows: Windows) -> tuple[Spans, np.ndarray]:
        """The best of each window, and [W] the score of no answer."""
        text, offsets = windows.origin.text, windows.tokens.offsets
        is_context, is_nothing = text == CONTEXT, np.zeros(len(text), np.bool_)
        is_nothing[offsets[:-1]] = text[offsets[:-1]] == SPECIAL
        start, end = (
            probabilities(values, is_context | is_nothing, offsets)
            for values in np.ascontiguousarray(windows.tokens.values.T)
        )
        nothing = np.where(is_nothing, start * end, np.float32(0))[offsets[:-1]]
        places = np.flatnonzero(is_context)  # one piece in each window
        bounds = np.searchsorted(places, offsets)
        begins, lengths = places[bounds[:-1]], np.diff(bounds)
        count = 2 * self._top_k + 10
        return best_spans(start, end, begins, lengths, self._max_answer_len, count), nothing

    def _columns(self, found: list[list[Answer] | None]) -> list[pa.Array]:
        """found: [rows], the best first."""
        if self._top_k == 1:
            return _arrays([answers[0] if answers else None for answers in found])
        offsets = offsets_of(np.array([len(answers or ()) for answers in found], np.int64))
        flat = pa.StructArray.from_arrays(_arrays([a for answers in found for a in answers or ()]), fields=ANSWER)
        mask = pa.array([answers is None for answers in found], pa.bool_())
        return [pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), flat, mask=mask)]


def _arrays(answers: list[Answer | None]) -> list[pa.Array]:
    """A column for each field of an answer."""
    return [pa.array([answer and answer[i] for answer in answers], field.type) for i, field in enumerate(ANSWER)]


def _valid(results: Results) -> Windows:
    """Windows of the rows that are valid; the values of others may be missing."""
    values, origin, row_of = results.ragged(), results.tokenized.origin, results.tokenized.row_of
    assert origin is not None and row_of is not None
    is_valid: Bools = results.is_valid[row_of]
    if is_valid.all():
        return Windows(row_of, values, origin)
    is_kept = np.repeat(is_valid, results.tokenized.tokens.lengths)
    kept = Origin(origin.text[is_kept], origin.start[is_kept], origin.end[is_kept], origin.word[is_kept],
                  origin.place[is_kept])  # fmt: skip
    return Windows(row_of[is_valid], values.take(np.flatnonzero(is_valid)), kept)


def characters(spans: Spans, windows: Windows) -> tuple[np.ndarray, np.ndarray]:
    """[M] where spans begin and end in the context: with the words that their first and last token are of, as far as
    the window has them; with those tokens, where the tokenizer has no words."""
    word, text = windows.origin.word, windows.origin.text
    is_new = np.ones(len(word) + 1, np.bool_)
    is_new[1:-1] = (word[1:] != word[:-1]) | (text[1:] != text[:-1])
    is_new[windows.tokens.offsets] = True
    bounds = np.flatnonzero(is_new)
    has_words = (word[spans.first] >= 0) & (word[spans.last] >= 0)
    first = bounds[np.searchsorted(bounds, spans.first, side="right") - 1]
    last = bounds[np.searchsorted(bounds, spans.last, side="right")] - 1
    start = windows.origin.start[np.where(has_words, first, spans.first)]
    return start, windows.origin.end[np.where(has_words, last, spans.last)]


def merged(context: str, scores: list[float], starts: list[int], ends: list[int]) -> list[Answer]:
    """Answers in the order in which they come first; the scores of those that read the same, but for case, added."""
    found: dict[str, list] = {}
    for score, start, end in zip(scores, starts, ends, strict=True):
        text = context[start:end]
        same = found.get(key := text.lower())
        if same is None:
            found[key] = [text, score, start, end]
        else:
            same[1] += score
    return [Answer(*values) for values in found.values()]
