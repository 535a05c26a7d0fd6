"""Reductions of heads as wide as the vocabulary: their logits are made for the tokens that need them, a few at a time.

All logits of 4,096 tokens over a vocabulary of 30,522 would be 500 MB.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from packhorse.data import Reduction

HEAD_TOKENS = 512  # 62 MB of logits in fp32 over 30,522

Head = Callable[[torch.Tensor], torch.Tensor]  # [m, H] -> logits [m, V]


def reduce(
    reduction: Reduction, hidden: torch.Tensor, lengths: torch.Tensor, places: torch.Tensor, targets: torch.Tensor,
    head: Head,
) -> torch.Tensor:  # fmt: skip
    """hidden: [T, H] of a batch's tokens, a row after the other. lengths: [n]. Gives [N, width] float32."""
    if reduction.kind == "sparse":
        return _sparse(reduction, hidden, lengths, head)
    of_piece = _log_probabilities if reduction.kind == "score" else _likeliest
    pieces = [
        of_piece(reduction, head(hidden[some]).float(), wanted)
        for some, wanted in zip(places.split(HEAD_TOKENS), targets.split(HEAD_TOKENS), strict=True)
    ]
    values = torch.cat(pieces) if pieces else hidden.new_zeros(0, max(reduction.width, 1), dtype=torch.float32)
    if reduction.kind != "score" or reduction.is_masked:
        return values
    every = hidden.new_zeros(len(hidden), 1, dtype=torch.float32)  # 0 for the first token of a row
    every[places + 1] = values
    return every


def _log_probabilities(reduction: Reduction, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """[m, V], [m] -> [m, 1]."""
    return logits.gather(1, targets[:, None]) - logits.logsumexp(1, keepdim=True)


def _likeliest(reduction: Reduction, logits: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
    """[m, V] -> [m, 2k] ids and probabilities, the likeliest first; or [m, columns] probabilities of some."""
    probabilities = logits.softmax(1)
    if reduction.columns:
        return probabilities[:, torch.tensor(reduction.columns, device=logits.device)]
    best = probabilities.topk(min(reduction.top_k, logits.shape[1]), 1)
    return torch.cat([best.indices.float(), best.values], 1)


def _sparse(reduction: Reduction, hidden: torch.Tensor, lengths: torch.Tensor, head: Head) -> torch.Tensor:
    """[N, 3] row, place, weight, by row and place. The weights of SPLADE (Formal et al., 2021): the sum, or in "SPLADE
    v2" the maximum, over a row's tokens of log(1 + relu(logit)). The maximum is taken first, since the function grows:
    as many logarithms as rows, not as tokens. scatter_reduce_ takes 2% of the head's time (MiniLM's 384 x 30,522 on a
    core), whatever the rows' lengths; a loop over rows is twice as slow."""
    row_of = torch.arange(len(lengths), device=hidden.device).repeat_interleave(lengths)
    is_sum = reduction.pooling == ("sum",)
    weights: torch.Tensor | None = None
    for some, rows in zip(hidden.split(HEAD_TOKENS), row_of.split(HEAD_TOKENS), strict=True):
        logits = head(some).float()
        if weights is None:
            weights = logits.new_zeros(len(lengths), logits.shape[1])  # relu: nothing is below 0
        if is_sum:
            _add(weights, rows, _saturated(reduction, logits.relu()))
        else:
            weights.scatter_reduce_(0, rows[:, None].expand_as(logits), logits, "amax")
    assert weights is not None
    return _entries(weights if is_sum else _saturated(reduction, weights))


def padded_weights(reduction: Reduction, logits: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """The same as a rectangle: [B, S, V] and [B, S] -> [B, V]."""
    values = logits.masked_fill(mask[:, :, None] == 0, 0.0).relu()
    if reduction.pooling == ("sum",):
        return _saturated(reduction, values).sum(1)
    return _saturated(reduction, values.amax(1))


def _saturated(reduction: Reduction, values: torch.Tensor) -> torch.Tensor:
    """log(1 + x), once or twice."""
    values = values.log1p()
    return values.log1p() if reduction.activation == "log1p" else values


def _add(sums: torch.Tensor, rows: torch.Tensor, values: torch.Tensor) -> None:
    """sums: [n, V], rows: [m] ascending, values: [m, V]. A matrix product: index_add_ on CUDA adds in any order, and a
    second run would give other bytes. 0 x NaN is NaN there: a row's must not become those of the others."""
    first, last = int(rows[0]), int(rows[-1])
    is_of = torch.arange(first, last + 1, device=rows.device)[:, None] == rows
    added = is_of.float() @ values
    if not added.isfinite().all():
        is_wrong = ~values.isfinite().all(1)
        added = is_of.float() @ values.masked_fill(is_wrong[:, None], 0.0)
        added.masked_fill_((is_of & is_wrong).any(1, keepdim=True), math.nan)
    sums[first : last + 1] += added


def _entries(weights: torch.Tensor) -> torch.Tensor:
    """[n, V] -> [N, 3] those that are not 0; one of each row at least, so that their number tells that of the rows."""
    is_entry = weights != 0
    is_entry[:, 0] |= ~is_entry.any(1)
    found = is_entry.nonzero()
    return torch.cat([found.float(), weights[found[:, 0], found[:, 1], None]], 1)
