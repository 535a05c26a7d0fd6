"""Which token budgets fit into a device's memory: learned from small batches, then checked by one large one."""

from __future__ import annotations

import numpy as np

from packhorse.data import Batch, ModelDescription, Tokens
from packhorse.errors import DeviceOutOfMemoryError
from packhorse.metrics import activation_bytes
from packhorse.stages import LoadedModel
from packhorse.tuning.memory import SAFETY_SHARE, fit, largest_budget, largest_fitting
from packhorse.tuning.search import BUDGETS

SMALL = (2_048, 4_096, 8_192)  # tokens of the batches that memory is learned from


def fitting_budgets(
    model: LoadedModel,
    description: ModelDescription,
    precision: str,
    rows: Tokens,
    workers: int,
    free_bytes: int | None,
) -> tuple[int, int]:
    """The least and the largest token budget that come into question.

    free_bytes: what this process may hold on the device, what it holds already included; None: not known. Of a device
    that counts what it holds, the largest was tried out with the job's longest rows; of a host, it is reckoned from the
    activations of one layer, for all workers at the same time.
    """
    lowest, highest = BUDGETS
    if free_bytes is None or not rows.num_rows:
        return BUDGETS
    if model.peak_bytes() is None:
        per_token = workers * activation_bytes(1, description.attention_width, precision)
        return lowest, max(lowest, min(highest, int(SAFETY_SHARE * free_bytes) // max(per_token, 1)))
    trials = [trial for tokens in SMALL if (trial := _try(model, rows, tokens)) is not None]
    if not trials:
        return lowest, lowest
    longest = int(rows.lengths.max())
    memory = fit(trials)
    steps = [lowest * 2**k for k in range((highest // lowest).bit_length())]
    if largest_budget(memory, free_bytes, longest) >= highest:
        return BUDGETS
    found = largest_fitting(steps, memory, free_bytes, longest, lambda tokens: _try(model, rows, tokens) is not None)
    return lowest, found or lowest


def _try(model: LoadedModel, rows: Tokens, tokens: int) -> tuple[int, int, int] | None:
    """(rows, longest, peak bytes) of a batch of so many tokens, all of them in the longest rows of the job; None where
    it does not fit. Peaks are those since the process began, so that trials have to grow."""
    longest = int(rows.lengths.argmax())
    count = max(tokens // int(rows.lengths[longest]), 1)
    try:
        model.forward(Batch(rows.take(np.full(count, longest)))).numpy()
    except DeviceOutOfMemoryError:
        return None
    peak = model.peak_bytes()
    return None if peak is None else (count, int(rows.lengths[longest]), peak)
