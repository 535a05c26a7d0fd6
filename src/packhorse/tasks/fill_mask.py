"""fill-mask: the likeliest tokens for each mask of a text, or the probabilities of given words there.

Scores, tokens and texts are those of transformers' pipeline.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from packhorse.config import EngineConfig
from packhorse.data import Float32s, Int32s, Int64s, ModelDescription, Reduction, offsets_of
from packhorse.sequences import Ragged, Results, Sequencing, Vocabulary
from packhorse.stages import Task

TOP_K = 5
CANDIDATE = pa.struct([
    ("score", pa.float32()), ("token", pa.int32()), ("token_str", pa.large_string()), ("sequence", pa.large_string()),
])  # fmt: skip


def make(description: ModelDescription, settings: EngineConfig) -> Task:
    return FillMask(settings)


class FillMask:
    """Column predictions: a list for each mask, in it its candidates, the likeliest first."""

    name = "fill-mask"
    max_value = float(np.finfo(np.float32).max)

    def __init__(self, settings: EngineConfig) -> None:
        self._top_k = TOP_K if settings.top_k is None else settings.top_k
        self._targets = settings.targets or ()
        self._long = "error" if settings.long == "error" else "truncate"

    def reduction(self) -> Reduction:
        return Reduction("fill", 2 * self._top_k, top_k=self._top_k)

    def sequencing(self) -> Sequencing:
        return Sequencing(long=self._long, mask_token=True)  # type: ignore[arg-type]

    def fields(self, width: int) -> list[pa.Field]:
        return [pa.field("predictions", pa.list_(pa.list_(CANDIDATE)))]

    def finish(self, results: Results) -> list[pa.Array]:
        """Of values [masks, 2k] or [masks, targets]."""
        values = _of_rows(results)
        ids, scores = self._best(values.values, results.vocabulary)
        texts, sequences = _texts(results, values, ids)
        candidates = pa.StructArray.from_arrays(
            [pa.array(scores.ravel()), pa.array(ids.ravel()), texts, sequences], fields=list(CANDIDATE)
        )
        by_mask = pa.ListArray.from_arrays(_offsets(np.full(len(ids), ids.shape[1])), candidates)
        mask = pa.array(~results.is_valid)
        return [pa.ListArray.from_arrays(pa.array(values.offsets, pa.int32()), by_mask, mask=mask)]

    def _best(self, values: Float32s, vocabulary: Vocabulary) -> tuple[Int32s, Float32s]:
        """[masks, k] ids and scores."""
        if not self._targets:
            return values[:, : self._top_k].astype(np.int32), values[:, self._top_k :].copy()
        ids = np.array(vocabulary.target_ids(self._targets), np.int32)
        order = np.argsort(-values, axis=1, kind="stable")[:, : self._top_k]
        return ids[order], np.take_along_axis(values, order, 1)


def _offsets(lengths: Int64s) -> pa.Array:
    return pa.array(offsets_of(lengths), pa.int32())


def _of_rows(results: Results) -> Ragged:
    """Those of each row; none where it is not valid."""
    values, row_of = results.ragged(), results.tokenized.row_of
    sequence = np.full(results.num_rows, -1, np.int64)
    sequence[np.arange(values.num_rows) if row_of is None else row_of] = np.arange(values.num_rows)
    return values.take(np.where(results.is_valid, sequence, -1))


def _texts(results: Results, values: Ragged, ids: Int32s) -> tuple[pa.Array, pa.Array]:
    """[masks * k] texts of the candidates alone, and in the place of their mask. As in the pipeline, special tokens are
    left out of the whole where the text has one mask, and stay where it has several: the other masks are such too."""
    vocabulary, filled_in = results.vocabulary, _FilledIn(results)
    different, which = np.unique(ids, return_inverse=True)
    alone = pa.array(vocabulary.decode([np.array([i]) for i in different]), pa.large_string())
    rows = np.flatnonzero(values.lengths).tolist()
    made = [tokens for row in rows for tokens in filled_in.of(row, ids[values.offsets[row] : values.offsets[row + 1]])]
    is_single = np.repeat(values.lengths == 1, values.lengths * ids.shape[1])
    whole = np.empty(len(made), object)
    for decode, chosen in ((vocabulary.detokenize, is_single), (vocabulary.decode, ~is_single)):
        whole[chosen] = decode([made[i] for i in np.flatnonzero(chosen)])
    return alone.take(pa.array(which.ravel())), pa.array(whole, pa.large_string())


class _FilledIn:
    """Tokens of rows with a candidate in the place of a mask."""

    def __init__(self, results: Results) -> None:
        vocabulary = results.vocabulary
        self._tokens, self._row_of = results.tokenized.tokens, results.tokenized.row_of
        self._mask_id, self._pad_id = vocabulary.mask_id, vocabulary.pad_id

    def of(self, row: int, ids: Int32s) -> list[Int32s]:
        """ids: [masks, k] -> masks * k rows of tokens; padding that a text brought is left out."""
        sequence = row if self._row_of is None else int(np.searchsorted(self._row_of, row))
        tokens = self._tokens.ids[self._tokens.offsets[sequence] : self._tokens.offsets[sequence + 1]]
        places = np.flatnonzero(tokens == self._mask_id)
        filled = np.repeat(tokens[None], ids.size, 0)
        filled[np.arange(ids.size), np.repeat(places, ids.shape[1])] = ids.ravel()
        return [made[made != self._pad_id] for made in filled]
