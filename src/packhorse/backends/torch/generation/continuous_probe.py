"""Is continuous batching right for this model? Packed and token by token, against each prompt alone, the plain way."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from packhorse.backends.torch.generation.packed_decoder import PackedDecoder
from packhorse.backends.torch.generation.proving import FAILURES
from packhorse.backends.torch.generation.running_batch import PackedBatch, RunningBatch
from packhorse.backends.torch.generation.slots import BLOCK
from packhorse.backends.torch.weights import max_positions
from packhorse.data import Float32s, Int32s, Tokens
from packhorse.errors import first_line
from packhorse.packing.attention import PackingError
from packhorse.packing.probe import TOLERANCE, error

# Tokens of the trial's prompts. Two are equal, so that one run has two rows; some fill their block while they run.
LENGTHS = (3, BLOCK - 2, 150, BLOCK - 2, 20)
STEPS = 4  # tokens of each behind its prompt, given, not chosen
LEAVES, LEAVES_AFTER = 1, 2  # this prompt, after so many of them
PREFIX = 40  # tokens of the longest prompt that two others go on from
PRECISIONS = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}
KINDS = {"full_attention", "sliding_attention"}  # of layers, whose meaning attention is told
CHANGING_ROPES = {"dynamic", "longrope"}


def fits(
    model: Any, device: str, trial: Tokens, longest: int | None = None, tolerance: float | None = None
) -> str | None:
    """Why this model cannot be run by the continuous engine; None where it can.

    trial: a few prompts of this model's vocabulary. longest: tokens that a prompt and its output may have together;
    None where that is not known. tolerance: the largest error, as a share of how much logits differ between rows and
    steps; None: the one of packing/probe.py for the model's type.
    """
    try:
        return _unfit_by_config(model, longest) or _unfit_by_trial(model, device, trial, tolerance)
    except (PackingError, *FAILURES) as failure:
        return f"it cannot be packed: {first_line(failure)}"


def _unfit_by_config(model: Any, longest: int | None) -> str | None:
    """What short prompts would not show."""
    if model.config.is_encoder_decoder:
        return "it has an encoder"
    config = model.config.get_text_config(decoder=True)
    others = sorted(set(getattr(config, "layer_types", None) or ()) - KINDS)
    if others:
        return f"it has layers of other kinds: {', '.join(others)}"
    for rope in _ropes(config):
        if rope.get("rope_type") not in CHANGING_ROPES:
            continue
        limit = rope.get("original_max_position_embeddings") or config.max_position_embeddings
        if longest is None or longest > limit:
            return f"its position embedding ({rope['rope_type']}) depends on the longest row beyond {limit:,} tokens"
    return None


def _ropes(config: Any) -> list[Mapping[str, Any]]:
    """One, or one a kind of layer."""
    rope = getattr(config, "rope_parameters", None) or {}
    nested = [value for value in rope.values() if isinstance(value, Mapping)]
    return nested or [rope]


def _unfit_by_trial(model: Any, device: str, trial: Tokens, tolerance: float | None) -> str | None:
    decoder = PackedDecoder(model, device)
    return differs(model, device, trial, PackedBatch(decoder), decoder.installed, tolerance)


def differs(
    model: Any, device: str, trial: Tokens, batch: RunningBatch[Given],
    installed: Callable[[], AbstractContextManager[None]] = contextlib.nullcontext, tolerance: float | None = None,
) -> str | None:  # fmt: skip
    """Why a batch is not to be used for this model: its logits are not those of each prompt alone in plain
    transformers; None where they are. installed: what the batch's calls stand inside."""
    texts = _texts(trial, max_positions(model))
    alone = [_alone(model, device, text) for text in texts]
    with installed():
        together = _together(batch, texts)
        behind = _behind_prefix(batch, texts)
    if (why := _unfit_by_windows(model, batch.windows)) is not None:
        return why
    expected = np.concatenate(
        [a[len(t) - STEPS - 1 :][: len(b)] for t, a, b in zip(texts, alone, together, strict=True)]
    )
    if tolerance is None:
        tolerance = TOLERANCE[_precision(model)]
    if (difference := error(expected, np.concatenate(together))) > tolerance:
        return f"packed, logits differ from those of each prompt alone by {difference:.2g} of their spread"
    longest = alone[int(np.argmax([len(text) for text in texts]))]
    if behind and (difference := error(longest[list(behind)], np.stack(list(behind.values())))) > tolerance:
        return f"behind a shared prefix, logits differ by {difference:.2g} of their spread"
    return None


def _precision(model: Any) -> str:
    """Products with weights of 8 or 4 bits may round by what else stands in the batch: no better than bf16's."""
    is_quantized = getattr(model, "hf_quantizer", None) is not None
    return "bf16" if is_quantized else PRECISIONS.get(model.dtype, "bf16")


def _texts(trial: Tokens, max_length: int | None) -> list[Int32s]:
    """Prompts with STEPS tokens behind each."""
    lengths = [min(n + STEPS, max_length or n + STEPS) for n in LENGTHS]
    return [np.resize(np.roll(trial.ids, -i), n) for i, n in enumerate(lengths)]


def _alone(model: Any, device: str, text: Int32s) -> Float32s:
    """[T, V] as transformers computes it."""
    with torch.inference_mode():
        ids = torch.from_numpy(text.astype(np.int64))[None].to(device)
        logits: Float32s = model(input_ids=ids, use_cache=False).logits[0].float().cpu().numpy()
    return logits


@dataclass(eq=False, slots=True)
class Given:
    """A row whose next tokens are given."""

    text: Int32s
    length: int

    @property
    def last_id(self) -> int:
        return int(self.text[self.length])


def _together(batch: RunningBatch[Given], texts: Sequence[Int32s]) -> list[Float32s]:
    """Logits [tokens, V] of every text behind its prompt and the tokens given. All rows have left the batch then."""
    prompts = [text[:-STEPS] for text in texts]
    values, keys = batch.prefill(prompts)
    logits = [[row] for row in _on_host(values)]
    entered = [Given(text, len(prompt)) for text, prompt in zip(texts, prompts, strict=True)]
    for given, own in zip(entered, keys, strict=True):
        batch.enter(given, own)
    batch.forget(keys)
    for step in range(STEPS):
        if step == LEAVES_AFTER:
            batch.leave([entered[LEAVES]])
        running, values = batch.decode()
        for given, row in zip(running, _on_host(values), strict=True):
            logits[entered.index(given)].append(row)
    batch.leave(running)
    return [np.stack(rows) for rows in logits]


def _behind_prefix(batch: RunningBatch[Given], texts: Sequence[Int32s]) -> dict[int, Float32s]:
    """Logits [V] at places of the longest text, computed behind a prefix of it; none where it is too short."""
    longest = max(texts, key=len)
    places = [place for place in (PREFIX + 8, len(longest) - 1) if place >= PREFIX]
    if len(longest) <= PREFIX + 8:
        return {}
    _, (prefix,) = batch.prefill([longest[:PREFIX]])
    rest = [longest[PREFIX : place + 1] for place in places]
    logits, keys = batch.prefill(rest, prefix)
    batch.forget([prefix, *keys])
    return dict(zip(places, _on_host(logits), strict=True))


def _on_host(logits: torch.Tensor) -> Float32s:
    """A copy: a batch's logits are valid until its next call."""
    values: Float32s = np.array(logits.float().cpu().numpy())
    return values


def _unfit_by_windows(model: Any, windows: Mapping[int, int | None]) -> str | None:
    """Windows are longer than the trial's prompts: whether attention is told of them is seen, not tried."""
    config = model.config.get_text_config(decoder=True)
    window = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None)
    if window is None or getattr(config, "use_sliding_window", True) is False:
        return None
    if kinds is None:
        is_told = any(w is not None for w in windows.values())
        return None if is_told else f"attention is not told of its sliding window of {window:,} tokens"
    expected = {layer: window if kind == "sliding_attention" else None for layer, kind in enumerate(kinds)}
    wrong = [layer for layer, w in windows.items() if w != expected[layer]]
    return f"attention is told of another window than the config's in layers {wrong}" if wrong else None
