"""Is a faster way right for this model? Rows together, the fast way, against each row alone, the plain way."""

from __future__ import annotations

import numpy as np

from packhorse.data import Float32s, Int64s, Tokens, offsets_of

# Longest of the rows made up for the probe: beyond the sliding windows that encoders have (ModernBERT: 64 each side).
LONG_ROWS = (300, 140)
JOB_ROWS = 8
MAX_TOKENS = 1_024
# Largest error as a share of how much rows differ from each other. Attention that looks across rows gives 0.3 and more.
TOLERANCE = {"fp32": 1e-4, "fp16": 0.02, "bf16": 0.1, "int8": 0.5}


def probe_rows(trial: Tokens, rows: Tokens, max_length: int | None, pad_id: int | None = None) -> Tokens:
    """The trial's short rows, two long ones made of its tokens, some of this job, and one that ends in padding.

    A text may end in the padding token, by its name or because that is the end token too, and heads that read a row's
    last token then read the one before.
    """
    long_rows = [_repeated(trial, min(length, max_length or length)) for length in LONG_ROWS]
    count = min(rows.num_rows, JOB_ROWS)
    chosen = np.linspace(0, rows.num_rows - 1, count).astype(np.int64) if count else np.empty(0, np.int64)
    budget = MAX_TOKENS - int(trial.offsets[-1]) - sum(t.num_rows and int(t.offsets[-1]) for t in long_rows)
    chosen = chosen[np.cumsum(rows.lengths[chosen]) <= budget]
    return _concatenated([trial, *long_rows, *_ending_in(pad_id, trial), rows.take(chosen)])


def error(alone: Float32s, fast: Float32s) -> float:
    """[n, width] each: the rms of the difference, as a share of the rms by which rows differ from their mean.

    So measured, an output that hardly depends on the row cannot hide a mistake. Infinite where a value is no number.
    """
    if alone.shape != fast.shape or not np.isfinite(fast).all():
        return float("inf")
    spread = float(np.sqrt(np.mean((alone - alone.mean(0)) ** 2)))
    floor = 1e-6 * float(np.abs(alone).max())
    return float(np.sqrt(np.mean((alone - fast) ** 2))) / max(spread, floor, 1e-30)


def _repeated(trial: Tokens, length: int) -> Tokens:
    """One row of that many tokens."""
    type_ids, targets = (None if x is None else np.resize(x, length) for x in (trial.type_ids, trial.targets))
    return Tokens(np.resize(trial.ids, length), np.array([0, length], np.int64), type_ids, targets)


def _ending_in(pad_id: int | None, trial: Tokens) -> list[Tokens]:
    """The trial's first row and a padding token; nothing for a model without one."""
    if pad_id is None or pad_id < 0:
        return []
    first = trial.take(np.array([0]))
    types = None if first.type_ids is None else np.append(first.type_ids, first.type_ids[-1:])
    targets = None if first.targets is None else np.append(first.targets, np.int32(-1))
    ids = np.append(first.ids, np.int32(pad_id))
    return [Tokens(ids, np.array([0, len(ids)], np.int64), types, targets)]


def _concatenated(parts: list[Tokens]) -> Tokens:
    lengths: Int64s = np.concatenate([p.lengths for p in parts])
    has_types = any(p.type_ids is not None for p in parts)
    types = [np.zeros(len(p.ids), np.int32) if p.type_ids is None else p.type_ids for p in parts]
    targets = [p.targets for p in parts if p.targets is not None]
    return Tokens(
        np.concatenate([p.ids for p in parts]), offsets_of(lengths), np.concatenate(types) if has_types else None,
        np.concatenate(targets) if len(targets) == len(parts) else None,
    )  # fmt: skip
