"""Heads as wide as the vocabulary, called on some tokens: do they give what the model's own forward gives there?"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from packhorse.backends.torch.layouts import Padded
from packhorse.data import Batch, Float32s, Reduction
from packhorse.errors import BatchRefusedError, ModelError
from packhorse.load_request import LoadRequest
from packhorse.packing.probe import TOLERANCE, error

FAILURES = (RuntimeError, ValueError, TypeError, IndexError, AttributeError, KeyError, BatchRefusedError)


def check_head(padded: Padded, model: Any, reduction: Reduction, request: LoadRequest, base: str) -> tuple[str, ...]:
    """Notes. Where a head on some tokens is another than in the model's forward, `padded` runs that forward from then
    on. Raises ModelError where a model that is to score what comes next sees it."""
    longest = request.trial.take(np.array([int(request.trial.lengths.argmax())]))
    if reduction.kind == "score" and not reduction.is_masked:
        _check_causal(padded, Batch(longest), request, base)
    wanted = _numbers(padded.logits(Batch(longest), apart=False))
    try:
        difference = error(wanted, _numbers(padded.logits(Batch(longest), apart=True)))
        why = f"differs by {difference:.2g} of the tokens' spread" if difference > TOLERANCE[base] else None
    except FAILURES as failure:
        why = f"fails: {failure}"
    if why is None:
        return ()
    padded.calls_head_apart = False
    return (f"logits of all tokens are made: the head of {type(model).__name__}, called on some tokens, {why}",)


def _check_causal(padded: Padded, batch: Batch, request: LoadRequest, base: str) -> None:
    """Scores of a row's first half must not depend on its second half."""
    tokens = batch.tokens
    half = max(int(tokens.lengths[0]) // 2, 1)
    alone = _numbers(padded.plain(Batch(tokens.first(half))))
    difference = error(alone, _numbers(padded.plain(batch))[:half])
    if difference > TOLERANCE[base]:
        raise ModelError(
            f"{request.description.folder}: its tokens see those behind them (without them, scores differ by "
            f"{difference:.2g} of their spread), so it gives no probability of what comes next. Is it a masked model? "
            "Those are scored where config.json names an architecture ...ForMaskedLM"
        )


def _numbers(values: torch.Tensor) -> Float32s:
    """On the host."""
    numbers: Float32s = values.float().cpu().numpy()
    return numbers
