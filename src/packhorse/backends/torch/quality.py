"""What quantization costs a language model in quality: its predictions against those of the full-precision model."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch

from packhorse.data import Tokens

POSITIONS = 256  # a piece: of a large vocabulary, logits of all positions in fp32 are gigabytes


def compare_language_models(reference: Any, quantized: Any, rows: Tokens, device: str) -> dict[str, float]:
    """How well two causal models, both on the device, predict each row's next tokens, one row at a time.

    num_tokens: predicted ones, all but the first of every row. reference_perplexity and quantized_perplexity: exp of
    the mean negative log-probability of the row's own next token, every token counting alike. top_1_agreement: share
    of tokens for which both find the same token most probable. mean_kl: of the divergence KL(reference || quantized) of
    the distributions over the vocabulary, in nats a token. Raises ValueError where no row has two tokens.
    """
    totals = torch.zeros(4, dtype=torch.float64)
    num_tokens = 0
    with torch.inference_mode():
        for row in np.flatnonzero(rows.lengths > 1):
            ids = torch.from_numpy(rows.ids[rows.offsets[row] : rows.offsets[row + 1]].astype(np.int64)).to(device)
            totals += _row_totals(_logits(reference, ids), _logits(quantized, ids), ids[1:])
            num_tokens += len(ids) - 1
    if not num_tokens:
        raise ValueError("no row has two tokens, so that there is no next token to predict")
    reference_nll, quantized_nll, agreed, divergence = (totals / num_tokens).tolist()
    return {
        "num_tokens": num_tokens,
        "reference_perplexity": _exp(reference_nll),
        "quantized_perplexity": _exp(quantized_nll),
        "top_1_agreement": agreed,
        "mean_kl": divergence,
    }


def _logits(model: Any, ids: torch.Tensor) -> torch.Tensor:
    """[n] ids -> [n - 1, V] what is predicted for all but the first."""
    logits: torch.Tensor = model(input_ids=ids[None], use_cache=False).logits[0, :-1]
    return logits


def _row_totals(reference: torch.Tensor, quantized: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """[4] float64: negative log-probabilities of the targets under each model, agreements, divergences, summed.

    reference, quantized: [m, V] logits; targets: [m] ids.
    """
    totals = torch.zeros(4, dtype=torch.float64)
    for first in range(0, len(targets), POSITIONS):
        piece = slice(first, first + POSITIONS)
        ours, theirs = (logits[piece].float().log_softmax(-1) for logits in (reference, quantized))
        place = targets[piece, None]
        totals += torch.stack([
            -ours.gather(1, place).sum(dtype=torch.float64), -theirs.gather(1, place).sum(dtype=torch.float64),
            (ours.argmax(-1) == theirs.argmax(-1)).sum(dtype=torch.float64),
            (ours.exp() * (ours - theirs)).sum(dtype=torch.float64),
        ]).cpu()  # fmt: skip
    return totals


def _exp(nll: float) -> float:
    try:
        return math.exp(nll)
    except OverflowError:  # beyond 709 nats a token
        return math.inf
