"""perplexity: log-likelihoods of texts, by natural logarithm.

Causal models score each token under those before it. Masked models score each token with it alone masked, all others
seen: the pseudo-log-likelihood of Salazar et al. (2020), "Masked Language Model Scoring".

Scored are a text's own tokens. Special tokens that the tokenizer puts around it are context, never scored; none is put
there that the tokenizer does not put there itself, so the first token of a text has no score where there is no token
for its beginning (GPT-2). With pairs the second text is scored under the first: causal models read both as one text, as
lm-evaluation-harness does, and a token of it is one that ends behind the first text's last character.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pyarrow as pa

from packhorse.config import EngineConfig
from packhorse.data import Bools, Float64s, Int32s, Int64s, ModelDescription, Reduction, offsets_of
from packhorse.errors import UsageError
from packhorse.sequences import MaskedTokens, Origin, Ragged, Results, Sequencing
from packhorse.stages import Task

MASKED = ("ForMaskedLM",)
CAUSAL = ("ForCausalLM", "LMHeadModel")
USUAL_MAX_LENGTH = 512


def make(description: ModelDescription, settings: EngineConfig) -> Task:
    """Raises UsageError where the model is of neither kind, and for a stride that leaves tokens without context."""
    architecture, is_masked = description.architecture, description.architecture.endswith(MASKED)
    if not is_masked and (description.is_encoder_decoder or not architecture.endswith(CAUSAL)):
        raise UsageError(
            f"--task perplexity: the model's architecture is {architecture or 'not named in config.json'}; this takes "
            f"masked models (...{MASKED[0]}) and causal ones (...{' or ...'.join(CAUSAL)})"
        )
    if settings.stride == 0 and not is_masked:
        raise UsageError("--stride 0: the first token of a window would have nothing before it; give 1 or more")
    limits = [n for n in (settings.max_length, description.max_length) if n]
    return Perplexity(settings, is_masked, min(limits, default=USUAL_MAX_LENGTH) // 2)


class Perplexity:
    """Columns log_likelihood, the sum over the scored tokens; num_tokens, how many those are; perplexity,
    exp(-log_likelihood / num_tokens), null without any; on request token_ids and token_logprobs, a number for each
    scored token."""

    name = "perplexity"
    max_value = float(np.finfo(np.float32).max)

    def __init__(self, settings: EngineConfig, is_masked: bool, usual_stride: int) -> None:
        """usual_stride: tokens that windows share where nothing is said."""
        self._is_masked, self._with_logprobs = is_masked, settings.logprobs
        self._long = "truncate" if settings.long == "auto" else settings.long
        self._stride = 0 if self._long != "windows" else usual_stride if settings.stride is None else settings.stride

    def reduction(self) -> Reduction:
        return Reduction("score", 1, is_masked=self._is_masked)

    def sequencing(self) -> Sequencing:
        long, stride = self._long, self._stride
        if self._is_masked:
            return Sequencing("masked", long, stride, cut="first", takes_empty=True)  # type: ignore[arg-type]
        return Sequencing(long=long, stride=stride, is_aligned=True, joins=True, takes_empty=True)  # type: ignore[arg-type]

    def fields(self, width: int) -> list[pa.Field]:
        fields = [("log_likelihood", pa.float64()), ("num_tokens", pa.int32()), ("perplexity", pa.float64())]
        if self._with_logprobs:
            fields += [("token_ids", pa.list_(pa.int32())), ("token_logprobs", pa.list_(pa.float32()))]
        return [pa.field(name, kind) for name, kind in fields]

    def finish(self, results: Results) -> list[pa.Array]:
        """Of values [tokens, 1], or [masked tokens, 1]."""
        scores = _of_masked(results) if self._is_masked else _of_causal(results)
        mask = ~results.is_valid
        sums = np.bincount(scores.row_of, scores.values, results.num_rows)
        counts = np.bincount(scores.row_of, minlength=results.num_rows)
        with np.errstate(over="ignore"):
            perplexity = np.exp(-sums / np.maximum(counts, 1))
        has_none = mask | (counts == 0) | ~np.isfinite(perplexity)
        columns = [
            pa.array(sums, pa.float64(), mask=mask), pa.array(counts, pa.int32(), mask=mask),
            pa.array(perplexity, pa.float64(), mask=has_none),
        ]  # fmt: skip
        if self._with_logprobs:
            offsets = pa.array(offsets_of(counts), pa.int32())
            flat = (pa.array(scores.ids, pa.int32()), pa.array(scores.values, pa.float32()))
            columns += [pa.ListArray.from_arrays(offsets, made, mask=pa.array(mask)) for made in flat]
        return columns


class _Scores(NamedTuple):
    """[N] of the scored tokens, in the order of the rows and of their texts."""

    row_of: Int64s
    ids: Int32s
    values: Float64s


def _of_masked(results: Results) -> _Scores:
    """A sequence has one masked token."""
    tokens, values = results.tokenized.tokens, results.ragged()
    row_of = _row_of(results)
    if not len(row_of):
        return _Scores(row_of, np.empty(0, np.int32), np.empty(0, np.float64))
    assert isinstance(tokens, MaskedTokens)
    has_value = (values.lengths > 0) & results.is_valid[row_of]
    scored = values.take(np.flatnonzero(has_value))
    return _Scores(row_of[has_value], tokens.masked_ids[has_value], scored.values[:, 0].astype(np.float64))


def _of_causal(results: Results) -> _Scores:
    """Of the tokens of windows those that are none of the window before; of pairs those of the second text."""
    tokens, origin, row_of = results.tokenized.tokens, results.tokenized.origin, _row_of(results)
    assert origin is not None
    token_row = np.repeat(row_of, tokens.lengths)
    is_scored = _is_new(origin, row_of, tokens.offsets) & results.is_valid[token_row]
    is_scored[tokens.offsets[:-1]] = False  # under nothing
    if results.pairs is not None:
        before = np.array([len(text or "") for text in results.texts], np.int64)
        is_scored &= origin.end > before[token_row]
    values = _of_tokens(results.ragged(), tokens.lengths)
    return _Scores(token_row[is_scored], tokens.ids[is_scored], values[is_scored].astype(np.float64))


def _row_of(results: Results) -> Int64s:
    row_of = results.tokenized.row_of
    return np.arange(results.num_rows) if row_of is None else row_of


def _of_tokens(values: Ragged, lengths: Int64s) -> np.ndarray:
    """[T]; 0 where a sequence has no values."""
    every = np.zeros(int(lengths.sum()), np.float32)
    every[np.repeat(values.lengths > 0, lengths)] = values.values[:, 0]
    return every


def _is_new(origin: Origin, row_of: Int64s, offsets: Int64s) -> Bools:
    """[T] whether a token is one of a text, and of no earlier window of its row."""
    is_text = origin.text >= 0
    if not len(row_of):
        return is_text
    last = np.maximum.reduceat(np.where(is_text, origin.place, -1), offsets[:-1])
    seen = np.where(np.append(False, row_of[1:] == row_of[:-1]), np.append(-1, last[:-1]), -1)
    is_new: Bools = is_text & (origin.place > np.repeat(seen, np.diff(offsets)))
    return is_new
