"""What quantizing a model that writes costs and gains: beside the same model without, on rows of the job."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from packhorse.data import Tokens
from packhorse.generation import QUANTIZED
from packhorse.loading.loader import Loader
from packhorse.loading.stepping import step_rate, trial_prompts
from packhorse.tuning.measure import Clock

ROWS, ROW_TOKENS = 24, 256  # compared: some thousand next tokens
MEMORY_MARGIN = 1.2


def compare_quantized(
    loader: Loader, precision: str, reference: str, max_rows: int, clock: Clock = time.perf_counter
) -> tuple[dict[str, Any] | None, tuple[str, ...]]:
    """Figures and a sentence; None and why not where they were not compared. reference: the precision without.

    num_tokens, reference_perplexity, quantized_perplexity, top_1_agreement and mean_kl are of the next tokens of up to
    24 prompts of the job (backends/torch/quality.py); weight_bytes and tokens_per_s of steps with max_rows rows.
    """
    why_not = _why_not(loader, precision)
    if why_not is not None:
        return None, ((f"{precision} was not compared with {reference}: {why_not}",) if why_not else ())
    quantized = loader.generator(precision)
    rows = _rows(loader.material.rows)
    prompts = trial_prompts(loader, min(max_rows, len(loader.material.lengths)))
    rate = step_rate(quantized, prompts, loader, clock)
    plain = loader.generator(reference)
    figures: dict[str, Any] = {
        "reference": reference, **loader.backend.compare_generators(plain, quantized, rows),
        "weight_bytes": quantized.weight_bytes, "reference_weight_bytes": plain.weight_bytes,
        "tokens_per_s": rate, "reference_tokens_per_s": step_rate(plain, prompts, loader, clock),
        "rows_at_once": prompts.num_rows,
    }  # fmt: skip
    loader.drop(frozenset({reference}))
    return figures, (_sentence(precision, figures),)


def _why_not(loader: Loader, precision: str) -> str | None:
    """Empty where nothing is to be said."""
    if (
        precision not in QUANTIZED
        or loader.own_precision is not None
        or not hasattr(loader.backend, "compare_generators")
    ):
        return ""
    if loader.description.is_encoder_decoder:
        return "only models without an encoder are"
    if loader.settings.tune == "off":
        return "--tune off"
    if loader.placement.is_split:
        return "the model lies on several devices"
    if not (loader.material.rows.lengths > 1).any():
        return "no rows were seen"
    free = loader.backend.free_bytes(loader.device)
    whole = sum(f.stat().st_size for f in loader.description.folder.glob("*.safetensors"))
    if free is not None and free < whole * MEMORY_MARGIN:
        return f"{free / 2**30:.1f} GiB are free, which do not hold both ({whole / 2**30:.1f} GiB more)"
    return None


def _rows(sample: Tokens) -> Tokens:
    places = np.flatnonzero(sample.lengths > 1)  # the sample's rows lie by length
    chosen = np.linspace(0, len(places) - 1, min(ROWS, len(places))).astype(np.int64)
    return sample.take(places[chosen]).first(ROW_TOKENS)


def _sentence(precision: str, f: dict[str, Any]) -> str:
    memory = f["weight_bytes"] / max(f["reference_weight_bytes"], 1)
    speed = f["tokens_per_s"] / max(f["reference_tokens_per_s"], 1e-9)
    lost = " (SLOWER: a lower precision of the weights alone saves memory, not time)" if speed < 1 else ""
    return (
        f"{precision} against {f['reference']}: {memory:.0%} of the memory, {speed:.2f}x the speed with "
        f"{f['rows_at_once']} rows at once{lost}; on {f['num_tokens']:,} tokens of the job perplexity "
        f"{f['quantized_perplexity']:.4g} against {f['reference_perplexity']:.4g}, {f['top_1_agreement']:.1%} the same "
        "next token"
    )
