"""Whether a session's values are torch's, on rows of this job and longer ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from packhorse.backends.onnx.providers import Provider
from packhorse.backends.onnx.session import Session, own_reading
from packhorse.data import Batch, Float32s, Tokens, offsets_of
from packhorse.errors import ModelError
from packhorse.load_request import LoadRequest
from packhorse.packing.probe import TOLERANCE, error, probe_rows
from packhorse.sequences import comparable

# One token, and as long as common models go: what a graph does with either shows only there.
LENGTHS = (1, 512)


def proof_rows(request: LoadRequest, max_length: int | None) -> Tokens:
    """The trial, rows of the job, rows longer than sliding windows, a row of one token and one of 512."""
    rows = probe_rows(request.trial, request.rows, max_length)
    lengths = np.array([min(n, max_length or n) for n in LENGTHS])
    where = np.concatenate([np.arange(n) % len(rows.ids) for n in lengths])
    types, targets = (None if x is None else np.concatenate([x, x[where]]) for x in (rows.type_ids, rows.targets))
    return Tokens(
        np.concatenate([rows.ids, rows.ids[where]]), offsets_of(np.concatenate([rows.lengths, lengths])), types, targets
    )


def prove(path: Path, rows: Tokens, expected: Float32s, request: LoadRequest, provider: Provider, pad_id: int) -> None:
    """expected: torch's values of each row alone, one after the other. Raises ModelError where the graph has others."""
    reduction = request.reduction
    session = Session(path, own_reading(reduction), pad_id, request, provider)
    values = []
    for row in range(rows.num_rows):
        try:
            values.append(comparable(reduction, session(Batch(rows.take(np.array([row]))))))
        except Exception as failure:
            raise ModelError(
                f"the exported graph fails on a row of {rows.lengths[row]} tokens: {str(failure).splitlines()[0]}"
            ) from failure
    found = np.concatenate(values)
    if found.shape != expected.shape:
        raise ModelError(f"the exported graph gives values of shape {found.shape}, torch {expected.shape}")
    is_defined = np.isfinite(expected).all(1)  # of a row that is all prompt, pooling leaves nothing
    difference = error(expected[is_defined], found[is_defined])
    if not difference <= TOLERANCE["fp32"]:
        raise ModelError(
            f"the exported graph differs from torch by {difference:.2g} of the spread of {rows.num_rows} rows "
            f"(allowed {TOLERANCE['fp32']:g})"
        )
