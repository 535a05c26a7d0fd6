"""sparse-embedding: a weight for each token of the vocabulary that a row is about, most of them 0 (SPLADE).

Columns, by the names that Qdrant and Pinecone take and that sentence-transformers' sparse tensors have:

    indices    list<int32>: places in the vocabulary whose weight is not 0, ascending
    values     list<float32>: their weights

The weights are those of Formal et al., 2021: of log(1 + relu(logit)) the largest of a row's tokens, special ones
included, or their sum where the folder says so. The score of two rows is the sum over common indices of the products.
`packhorse.embedding_width` among the metadata of `indices` is the size of the vocabulary, where config.json tells it.
A row that is no error may have empty lists.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from packhorse.config import EngineConfig
from packhorse.data import Bools, Int64s, ModelDescription, Reduction, offsets_of
from packhorse.errors import UsageError
from packhorse.sequences import Ragged, Results, Sequencing
from packhorse.stages import Task
from packhorse.tasks.generated import lists
from packhorse.tasks.windows import Windows


def make(description: ModelDescription, settings: EngineConfig) -> Task:
    """Raises UsageError for windows that overlap under a sum."""
    if settings.stride and description.pooling.pooling == ("sum",):
        raise UsageError(
            f"--stride {settings.stride}: this model adds the weights of all tokens up, and those that two windows "
            "share would count twice: leave --stride out"
        )
    return SparseEmbedding(description.pooling, description.vocab_size, settings)


class SparseEmbedding:
    """Columns indices and values. Null where a row is in error."""

    name = "sparse-embedding"
    max_value = float(np.finfo(np.float32).max)

    def __init__(self, reduction: Reduction, vocab_size: int | None, settings: EngineConfig) -> None:
        self._reduction, self._vocab_size = reduction, vocab_size
        self._most = settings.top_k if settings.top_k is not None else reduction.top_k  # entries a row; 0: all
        self._windows = Windows.of(settings)

    def reduction(self) -> Reduction:
        return self._reduction

    def sequencing(self) -> Sequencing:
        return self._windows.sequencing()

    def fields(self, width: int) -> list[pa.Field]:
        """width: of no meaning here."""
        told = {b"packhorse.embedding_width": str(self._vocab_size)} if self._vocab_size else None
        return [
            pa.field("indices", pa.list_(pa.int32()), metadata=told),
            pa.field("values", pa.list_(pa.float32())),
        ]

    def finish(self, results: Results) -> list[pa.Array]:
        """Of entries `place | weight`. Windows of a row are put together as tokens are: by the largest weight, or the
        sum."""
        entries, is_valid = results.ragged(), results.is_valid
        row_of = results.tokenized.row_of
        of_entry = np.repeat(np.arange(entries.num_rows) if row_of is None else row_of, entries.lengths)
        rows, places, weights = self._together(entries, of_entry, is_valid)
        if self._most:
            is_kept = _largest(rows, weights, self._most)
            rows, places, weights = rows[is_kept], places[is_kept], weights[is_kept]
        offsets = offsets_of(np.bincount(rows, minlength=results.num_rows))
        columns = (pa.array(places, pa.int32()), pa.array(weights, pa.float32()))
        return [lists(column, offsets, is_valid) for column in columns]

    def _together(self, entries: Ragged, rows: Int64s, is_valid: Bools) -> tuple[Int64s, Int64s, np.ndarray]:
        """[N] row, place and weight of each entry that counts, by row and place."""
        is_kept = is_valid[rows] & (entries.values[:, 1] != 0)
        rows, places, weights = rows[is_kept], entries.values[is_kept, 0].astype(np.int64), entries.values[is_kept, 1]
        if not self._windows.is_used or not len(rows):
            return rows, places, weights
        order = np.lexsort((places, rows))
        rows, places, weights = rows[order], places[order], weights[order]
        is_first = np.append(True, (np.diff(rows) != 0) | (np.diff(places) != 0))
        firsts = np.flatnonzero(is_first)
        put = np.add if self._reduction.pooling == ("sum",) else np.maximum
        return rows[firsts], places[firsts], put.reduceat(weights, firsts)


def _largest(rows: Int64s, weights: np.ndarray, most: int) -> Bools:
    """[N] whether an entry is among the largest of its row; of equal ones the first. rows: [N] ascending."""
    order = np.lexsort((-weights, rows))  # stable: by row, then by weight
    counts = np.bincount(rows)
    rank = np.arange(len(rows)) - np.repeat(offsets_of(counts)[:-1], counts)
    is_kept = np.zeros(len(rows), np.bool_)
    is_kept[order[rank < most]] = True
    return is_kept
