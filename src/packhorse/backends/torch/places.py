"""Which tokens of a batch a head as wide as the vocabulary is called on. Needs no torch."""

from __future__ import annotations

import numpy as np

from packhorse.data import Batch, Int64s, Reduction


def inputs(reduction: Reduction, batch: Batch) -> dict[str, Int64s]:
    """places: [M] numbers of the tokens of a batch whose logits are needed; targets: [M] those scored there, -1 where
    none is. A causal model's logits stand one token before what they score; a row's last one scores nothing."""
    tokens = batch.tokens
    if reduction.kind == "fill":
        places = np.flatnonzero(tokens.ids == reduction.mask_id)
        return {"places": places, "targets": np.full(len(places), -1, np.int64)}
    if reduction.kind == "sparse":
        return {"places": np.arange(len(tokens.ids)), "targets": np.full(len(tokens.ids), -1, np.int64)}
    if reduction.is_masked:
        assert tokens.targets is not None
        places = np.flatnonzero(tokens.targets >= 0)
        return {"places": places, "targets": tokens.targets[places].astype(np.int64)}
    is_first = np.zeros(len(tokens.ids), np.bool_)
    is_first[tokens.offsets[:-1][tokens.lengths > 0]] = True
    scored = np.flatnonzero(~is_first)
    return {"places": scored - 1, "targets": tokens.ids[scored].astype(np.int64)}
