"""multi-vector-embedding: a vector for each token of a row, for late interaction (ColBERT).

Column `embeddings`, list<fixed_size_list<float32>[d]>, or float16: the vectors of a row's tokens in their order,
special tokens and markers included, projected and normalized as the model's folder says. A plain encoder's are those of
its last hidden state, of length 1 unless --no-normalize is said. Of a folder of sentence-transformers'
MultiVectorEncoder, of PyLate or of Stanford's ColBERT documents are encoded: their marker before the text, no vectors
of the tokens that the folder skips, mostly punctuation. --prompt-name query encodes queries: their own marker, filled
up with mask tokens to the folder's length.

With --long windows the vectors are those of one text: a token that two windows share has one, from the first of them;
what stands before the text comes from the first window, and what stands behind it from the last.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from packhorse.config import EngineConfig
from packhorse.data import Bools, Int64s, ModelDescription, Reduction, offsets_of
from packhorse.errors import UsageError
from packhorse.late_interaction import LateInteraction
from packhorse.sequences import Origin, Results, Sequencing, Tokenized
from packhorse.stages import Task
from packhorse.tasks.generated import lists
from packhorse.tasks.vectors import vectors
from packhorse.tasks.windows import Windows

TYPES = {"float32": np.float32, "float16": np.float16}


def make(description: ModelDescription, settings: EngineConfig) -> Task:
    """Raises UsageError for a format that several vectors a row do not have, and for lengths that queries cannot
    have."""
    if settings.embedding_format not in TYPES:
        raise UsageError(
            f"--embedding-format {settings.embedding_format}: {MultiVectorEmbedding.name} has {' and '.join(TYPES)}"
        )
    late = description.late
    if late is not None and late.expand_to is not None:
        _check_query(late, settings)
    return MultiVectorEmbedding(description.pooling, late, settings)


class MultiVectorEmbedding:
    """Column embeddings. Null where a row is in error."""

    name = "multi-vector-embedding"

    def __init__(self, reduction: Reduction, late: LateInteraction | None, settings: EngineConfig) -> None:
        self._reduction, self._late = reduction, late
        self._windows = Windows.of(settings)
        self._dtype = np.dtype(TYPES[settings.embedding_format])
        self.max_value = float(np.finfo(np.float16 if self._dtype == np.float16 else np.float32).max)

    def reduction(self) -> Reduction:
        return self._reduction

    def sequencing(self) -> Sequencing:
        windows, late = self._windows, self._late
        if late is None and not windows.is_used:
            return Sequencing()
        return Sequencing(
            long=windows.long, stride=windows.stride, is_aligned=windows.is_used,  # type: ignore[arg-type]
            usual_length=late.length if late else None, late=late,
        )  # fmt: skip

    def fields(self, width: int) -> list[pa.Field]:
        kind = pa.list_(pa.list_(pa.from_numpy_dtype(self._dtype), width))
        return [pa.field("embeddings", kind, metadata={b"packhorse.embedding_width": str(width)})]

    def finish(self, results: Results) -> list[pa.Array]:
        """Of values [tokens, width]."""
        found, tokenized = results.ragged(), results.tokenized
        lengths = tokenized.tokens.lengths
        row_of = np.arange(len(lengths)) if tokenized.row_of is None else tokenized.row_of
        has_values = found.lengths > 0  # a sequence that failed has tokens, and none
        of_token = np.repeat(row_of, lengths)
        is_kept = (_wanted(tokenized, row_of) & results.is_valid[of_token])[np.repeat(has_values, lengths)]
        rows = of_token[np.repeat(has_values, lengths)][is_kept]
        values = found.values[is_kept].astype(self._dtype, copy=False)
        offsets = offsets_of(np.bincount(rows, minlength=results.num_rows))
        return [lists(vectors(values, np.ones(len(values), np.bool_)), offsets, results.is_valid)]


def _wanted(tokenized: Tokenized, row_of: Int64s) -> Bools:
    """[T] tokens that have a vector in the result. row_of: [sequences]"""
    is_wanted = np.ones(len(tokenized.tokens.ids), np.bool_)
    if tokenized.is_skipped is not None:
        is_wanted &= ~tokenized.is_skipped
    if tokenized.origin is not None:
        is_wanted &= _once(tokenized.origin, tokenized.tokens.offsets, row_of)
    return is_wanted


def _once(origin: Origin, offsets: Int64s, row_of: Int64s) -> Bools:
    """[T] as if a row's windows were one text: each token of its moving text once, what stands before it and behind it
    once. offsets: [sequences + 1]; row_of: [sequences] ascending."""
    if not len(row_of):
        return np.empty(0, np.bool_)
    lengths = np.diff(offsets)
    is_moving = origin.text == max(origin.text.max(initial=0), 0)  # of a pair the second text
    count = np.append(0, np.cumsum(is_moving))
    done = count[:-1] - np.repeat(count[offsets[:-1]], lengths)  # moving tokens of its sequence before each token
    is_head = ~is_moving & (done == 0)
    is_tail = ~is_moving & (done == np.repeat(np.diff(count[offsets]), lengths))
    is_new_row = np.append(True, row_of[1:] != row_of[:-1])
    ends = np.maximum.reduceat(np.where(is_moving, origin.place, -1), offsets[:-1]) + 1
    seen = np.where(is_new_row, 0, np.append(0, ends[:-1]))  # places that windows before have had
    is_first, is_last = np.repeat(is_new_row, lengths), np.repeat(np.append(is_new_row[1:], True), lengths)
    is_new = is_moving & (origin.place >= np.repeat(seen, lengths))
    return is_new | (is_head & is_first) | (is_tail & is_last)


def _check_query(late: LateInteraction, settings: EngineConfig) -> None:
    if settings.long == "windows":
        raise UsageError(f"--long windows: a query is filled up to {late.expand_to} tokens, and is read whole")
    if late.is_fixed and settings.max_length is not None:
        raise UsageError(
            f"--max-length {settings.max_length}: this model's queries have {late.expand_to} tokens, no more and no "
            "fewer: leave --max-length out"
        )
