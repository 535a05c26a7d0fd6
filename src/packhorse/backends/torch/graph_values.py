"""What a graph with a reduction inside is given beside a padded batch, and what the host makes of what it gives. Needs
no torch.

The graph gives, float32: of a reduction a row [B, width]; a token [B, S, width], padding too; of kind sparse [B, V]; of
kinds fill and score, whose heads are as wide as the vocabulary, [M, width] of the M places that it is told.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from packhorse.backends.torch.places import inputs
from packhorse.data import NEWER, Batch, Float32s, Int64s, Reduction, reduction_json

VALUES, IDS = "values", "ids"

# Outputs of models that others exported, from which a kind can be computed on the host; the most useful first.
LOGITS, HIDDEN = (("logits",),), (("last_hidden_state",), ("token_embeddings",))
MODEL_OUTPUTS: dict[str, tuple[tuple[str, ...], ...]] = {
    "classify": LOGITS, "tokens": LOGITS, "fill": LOGITS, "sparse": LOGITS, "score": LOGITS,
    "spans": (("start_logits", "end_logits"),), "pool": HIDDEN, "vectors": HIDDEN,
}  # fmt: skip


# Fields of a Reduction that say what a graph is given, or what is made of what it gives.
HOST_ONLY = {"mask_id", "unattended_id"}
# What --task names the kinds that an architecture alone does not tell apart.
TASKS = {"sparse": "sparse-embedding", "vectors": "multi-vector-embedding", "score": "perplexity", "fill": "fill-mask",
         "pool": "feature-extraction", "classify": "text-classification"}  # fmt: skip


def input_names(reduction: Reduction) -> tuple[str, ...]:
    """Of inputs [M] int64 beside the model's own: places in the flattened [B, S], and tokens to be scored there."""
    return {"fill": ("places",), "score": ("places", "targets")}.get(reduction.kind, ())


def output_names(reduction: Reduction) -> tuple[str, ...]:
    """The likeliest tokens are an output of their own, int64: fp16 holds whole numbers up to 2,048 only."""
    return (VALUES, IDS) if reduction.kind == "fill" and not reduction.columns else (VALUES,)


def place_inputs(reduction: Reduction, batch: Batch) -> dict[str, Int64s]:
    """Those of input_names. A batch without any place gets one that means nothing: not every engine runs on none."""
    names = input_names(reduction)
    if not names:
        return {}
    found = inputs(reduction, batch)
    if not len(found["places"]):
        return {name: np.zeros(1, np.int64) for name in names}
    return {name: found[name] for name in names} | {"places": flat_places(batch)[found["places"]]}


def flat_places(batch: Batch) -> Int64s:
    """[T] where each token stands in the flattened [B, S] of the padded batch."""
    shift = np.arange(batch.num_rows) * batch.max_seqlen - batch.tokens.offsets[:-1]
    return np.arange(batch.real_tokens) + np.repeat(shift, batch.tokens.lengths)


def values_of(reduction: Reduction, outputs: Sequence[np.ndarray], batch: Batch) -> Float32s:
    """[N, width] as Reduction.per says, of the outputs in the order of output_names."""
    values: Float32s = outputs[0].astype(np.float32, copy=False)
    if reduction.kind == "sparse":
        is_entry = values != 0
        is_entry[:, 0] |= ~is_entry.any(1)  # one of each row at least
        row, place = is_entry.nonzero()
        return np.stack([row, place, values[row, place]], 1).astype(np.float32, copy=False)
    if reduction.per == "row":
        return values
    if not reduction.reads_vocabulary:
        return values.reshape(-1, values.shape[-1])[flat_places(batch)]
    places = inputs(reduction, batch)["places"]
    if reduction.kind == "fill" and not reduction.columns:  # of a graph that gives more of them the likeliest
        ids = outputs[1][:, : reduction.top_k].astype(np.float32)
        values = np.concatenate([ids, values[:, : reduction.top_k]], 1)
    values = values[: len(places)]
    if reduction.per != "token":
        return values
    every = np.zeros((batch.real_tokens, 1), np.float32)  # 0 for the first token of a row
    every[places + 1] = values
    return every


def graph_json(reduction: Reduction) -> dict[str, Any]:
    """As reduction_json, without what changes the inputs or the columns and not the graph."""
    of_host = set(HOST_ONLY)
    if reduction.kind == "sparse" or reduction.columns:
        of_host.add("top_k")
    if reduction.per != "row":  # pooling alone skips
        of_host.add("skip_tokens")
    return {name: value for name, value in reduction_json(reduction).items() if name not in of_host}


def differences(inside: Mapping[str, Any], asked: Reduction) -> str:
    """What an exported graph reduces in another way than it is asked to, in words, and what to do then; empty where
    nothing. inside: as graph_json writes it."""
    wanted, inside = graph_json(asked), dict(inside)
    if "kind" in inside and inside["kind"] != wanted["kind"]:
        task = TASKS.get(inside["kind"])
        return f"kind {inside['kind']}, not {wanted['kind']}; " + (f"say --task {task}" if task else "is --task right?")
    if inside.get("top_k", 0) > asked.top_k > 0:  # the first of those that it gives
        inside |= {"top_k": asked.top_k, "width": wanted["width"]}
    differing = [name for name in wanted | inside if _said(wanted, name) != _said(inside, name)]
    if "columns" in differing or not (inside.get("width") and wanted["width"]):  # 0: known when it is loaded
        differing = [name for name in differing if name not in ("width", "top_k")]
    seen = ", ".join(f"{n} {_short(_said(inside, n))}, not {_short(_said(wanted, n))}" for n in differing)
    return f"{seen}; leave out the settings that change it, or export the model again" if seen else ""


def _said(reduction: Mapping[str, Any], name: str) -> Any:
    """A field, or what it means that it is left out."""
    return reduction.get(name, NEWER.get(name))


def _short(value: Any) -> str:
    return "none" if value in ("", [], None) else json.dumps(value) if not isinstance(value, str) else value
