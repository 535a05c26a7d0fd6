"""token-classification: entities of a text, with their characters there.

Tokens become entities as in transformers' TokenClassificationPipeline: --aggregation is its aggregation_strategy, a
list of words stands for its is_split_into_words, and --long windows for its stride.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain, pairwise
from typing import Any

import numpy as np
import pyarrow as pa

from packhorse.config import EngineConfig
from packhorse.data import Float32s, Int32s, Int64s, ModelDescription, Reduction, offsets_of, ranges
from packhorse.sequences import Origin, Results, Sequencing, Vocabulary
from packhorse.stages import Task
from packhorse.tasks.entities import (
    Labels,
    Pieces,
    grouped,
    is_inside_by_length,
    is_inside_by_spaces,
    once_each,
    token_pieces,
    without_overlaps,
    word_pieces,
)

PLACES = [("start", pa.int32()), ("end", pa.int32())]
TOKEN = [("entity", pa.large_string()), ("score", pa.float32()), ("index", pa.int32()), ("word", pa.large_string())]
GROUP = [("entity_group", pa.large_string()), ("score", pa.float32()), ("word", pa.large_string())]


def make(description: ModelDescription, settings: EngineConfig) -> Task:
    return TokenClassification(description.labels, settings)


class TokenClassification:
    """Column entities: a list of {entity, score, index, word, start, end} where tokens are not aggregated, else of
    {entity_group, score, word, start, end}. start and end are characters of the text, or of the words joined by
    spaces; index counts the special tokens too, and goes on through the windows of a long text."""

    name = "token-classification"
    max_value = float(np.finfo(np.float32).max)

    def __init__(self, labels: tuple[str, ...], settings: EngineConfig) -> None:
        self._labels, self._ignored = Labels(labels), settings.ignore_labels
        self._how, self._stride = settings.aggregation, settings.stride or 0
        self._long = "truncate" if settings.long == "auto" else settings.long

    def reduction(self) -> Reduction:
        return Reduction("tokens", len(self._labels.names), "softmax")

    def sequencing(self) -> Sequencing:
        return Sequencing(long=self._long, stride=self._stride, is_aligned=True, is_single=True)  # type: ignore[arg-type]

    def fields(self, width: int) -> list[pa.Field]:
        return [pa.field("entities", pa.list_(pa.struct([*(TOKEN if self._how == "none" else GROUP), *PLACES])))]

    def finish(self, results: Results) -> list[pa.Array]:
        """Of values [tokens, labels]."""
        tokens = _Tokens.of(results)
        found, words = self._tokens(tokens) if self._how == "none" else self._groups(tokens)
        row = tokens.row[found.first]
        names = pa.array(self._labels.names if self._how == "none" else self._labels.groups, pa.large_string())
        index = [pa.array(tokens.index(found.first), pa.int32())] if self._how == "none" else []
        columns = [
            names.take(pa.array(found.label)), pa.array(found.score), *index, pa.array(words, pa.large_string()),
            pa.array(tokens.start[found.first], pa.int32()), pa.array(tokens.end[found.end - 1], pa.int32()),
        ]  # fmt: skip
        kind = self.fields(0)[0].type.value_type
        offsets = pa.array(offsets_of(np.bincount(row, minlength=results.num_rows)), pa.int32())
        entities = pa.StructArray.from_arrays(columns, fields=list(kind))
        return [pa.ListArray.from_arrays(offsets, entities, mask=pa.array(~results.is_valid))]

    def _tokens(self, tokens: _Tokens) -> tuple[Pieces, list[str]]:
        """Each token of a text once."""
        numbers = tokens.of_text
        is_windowed = tokens.has_windows[tokens.row[numbers]]
        if is_windowed.any():
            seen = numbers[is_windowed]
            chosen = seen[once_each(tokens.row[seen], tokens.sequence[seen], tokens.origin.place[seen])]
            numbers = np.concatenate([numbers[~is_windowed], chosen])
            numbers = numbers[np.lexsort((tokens.origin.place[numbers], tokens.row[numbers]))]
        pieces = token_pieces(tokens.values, numbers, tokens.sequence[numbers])
        pieces = pieces.take(~np.isin(pieces.label, self._places(self._labels.names)))
        return pieces, tokens.texts(pieces.first)

    def _groups(self, tokens: _Tokens) -> tuple[Pieces, list[str]]:
        numbers, values = tokens.of_text, tokens.values
        sequence = tokens.sequence[numbers]
        if self._how == "simple":
            units = token_pieces(values, numbers, sequence)
        else:
            units = word_pieces(values, numbers, sequence, tokens.is_inside()[numbers], self._how)
        groups, bounds = grouped(units, self._labels)
        kept = np.flatnonzero(~np.isin(groups.label, self._places(self._labels.groups)))
        kept = kept[self._once(groups.take(kept), tokens)]
        starts, lengths = bounds[kept], np.diff(bounds)[kept]
        inside = units.take(ranges(starts, lengths))
        words = tokens.texts(ranges(inside.first, inside.end - inside.first))
        if self._how != "simple":  # the pipeline joins the tokens of a word, and then the words
            words = _joined(words, inside.end - inside.first, tokens.vocabulary)
        return groups.take(kept), _joined(words, lengths, tokens.vocabulary)

    def _once(self, found: Pieces, tokens: _Tokens) -> Int64s:
        """[kept] numbers of the entities that stay where windows overlap; by row."""
        row = tokens.row[found.first]
        is_windowed = tokens.has_windows[row]
        if not is_windowed.any():
            return np.arange(len(row))
        seen = np.flatnonzero(is_windowed)
        start, end = tokens.start[found.first[seen]], tokens.end[found.end[seen] - 1]
        kept = seen[without_overlaps(row[seen], start, end, found.score[seen])]
        both = np.concatenate([np.flatnonzero(~is_windowed), kept])
        return both[np.argsort(row[both], kind="stable")]

    def _places(self, names: tuple[str, ...] | list[str]) -> list[int]:
        """Of those that are ignored."""
        return [i for i, name in enumerate(names) if name in self._ignored]


@dataclass(frozen=True, slots=True)
class _Tokens:
    """The tokens [T] of a shard's valid rows, and where they stand."""

    ids: Int32s
    values: Float32s  # [T, labels]
    origin: Origin
    start: Int64s  # [T] character of the sentence
    end: Int64s
    sequence: Int64s  # [T]
    row: Int64s  # [T]
    begins: Int64s  # [sequences] first token of each
    has_windows: np.ndarray  # [rows] of bool: whether a row has several sequences
    sentences: list[str]  # [rows]
    vocabulary: Vocabulary

    @classmethod
    def of(cls, results: Results) -> _Tokens:
        tokenized, values = results.tokenized, results.ragged()
        tokens, origin, row_of = tokenized.tokens, tokenized.origin, tokenized.row_of
        assert origin is not None and row_of is not None
        is_kept = results.is_valid[row_of]
        if not is_kept.all():
            of_tokens, kept = np.repeat(is_kept, tokens.lengths), np.flatnonzero(is_kept)
            origin = Origin(origin.text[of_tokens], origin.start[of_tokens], origin.end[of_tokens],
                            origin.word[of_tokens], origin.place[of_tokens])  # fmt: skip
            tokens, values, row_of = tokens.take(kept), values.take(kept), row_of[kept]
        sequence = np.repeat(np.arange(len(row_of)), tokens.lengths)
        row = row_of[sequence]
        shift = _word_starts(results.texts, row, origin)
        return cls(
            tokens.ids, values.values, origin, origin.start + shift, origin.end + shift, sequence, row,
            tokens.offsets[:-1], np.bincount(row_of, minlength=results.num_rows) > 1,
            [text if isinstance(text, str) else " ".join(text or ()) for text in results.texts], results.vocabulary,
        )  # fmt: skip

    @property
    def of_text(self) -> Int64s:
        """Numbers of the tokens that are no special ones."""
        return np.flatnonzero(self.origin.text >= 0)

    def index(self, numbers: Int64s) -> Int64s:
        """Of tokens in their sequence; of a row's windows in the sequence that the whole text would be."""
        own = numbers - self.begins[self.sequence[numbers]]
        before = np.searchsorted(self.of_text, self.begins[self.sequence[numbers]])  # first token of text
        leading = self.of_text[before] - self.begins[self.sequence[numbers]]
        return np.where(self.has_windows[self.row[numbers]], self.origin.place[numbers] + leading, own)

    def is_inside(self) -> np.ndarray:
        """[T] whether a token goes on with a word, as far as the pipeline can tell."""
        if self.vocabulary.marks_subwords:
            different, where = np.unique(self.ids, return_inverse=True)
            lengths = np.array([len(self.vocabulary.token_text(i)) for i in different.tolist()], np.int64)
            is_inside = is_inside_by_length(lengths[where], self.origin)
        else:
            is_inside = is_inside_by_spaces(self.sentences, self.row, self.start)
        is_inside[self.ids == self.vocabulary.unknown_id] = False
        return is_inside

    def texts(self, numbers: Int64s) -> list[str]:
        """Of tokens as the vocabulary has them, of unknown ones as the text has them."""
        ids = self.ids[numbers]
        texts = {i: self.vocabulary.token_text(i) for i in np.unique(ids).tolist()}
        shown = [texts[i] for i in ids.tolist()]
        for i in np.flatnonzero(ids == self.vocabulary.unknown_id).tolist():
            at = numbers[i]
            shown[i] = self.sentences[self.row[at]][self.start[at] : self.end[at]]
        return shown


def _word_starts(texts: Any, row: Int64s, origin: Origin) -> Int64s:
    """[T] where the word of each token begins in the words joined by spaces; 0 where texts are no lists of words."""
    if isinstance(next((text for text in texts if text is not None), ""), str):
        return np.zeros(len(row), np.int64)
    counts = np.array([0 if words is None else len(words) for words in texts], np.int64)
    ends = np.cumsum([0, *(len(word) + 1 for word in chain.from_iterable(words or () for words in texts))])
    first = offsets_of(counts)[:-1]
    starts: Int64s = ends[first[row] + np.maximum(origin.word, 0)] - ends[first[row]]
    return np.where(origin.text >= 0, starts, 0)


def _joined(texts: list[str], lengths: Int64s, vocabulary: Vocabulary) -> list[str]:
    """As many texts as the lengths say, put together as the tokenizer does it."""
    stretches = [tuple(texts[a:b]) for a, b in pairwise(offsets_of(lengths).tolist())]
    joined = {stretch: vocabulary.join(stretch) for stretch in set(stretches)}  # a call takes 4 us, a look 0.1
    return [joined[stretch] for stretch in stretches]
