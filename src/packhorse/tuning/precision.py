"""Which precisions come into question, and what a lower one's values are held against."""

from __future__ import annotations

import numpy as np

from packhorse.config import EngineConfig
from packhorse.data import Reduction
from packhorse.generation import QUANTIZED
from packhorse.sequences import Values
from packhorse.tuning.gate import Verdict, compare, default_tolerance, lines

LOWER = ("bf16", "fp16")


def first_choice(settings: EngineConfig, supported: tuple[str, ...], own: str | None) -> str:
    """What runs where nothing is measured."""
    if own:
        return own
    if settings.exact:
        return "fp32"
    if settings.precision == "auto" and settings.attention.startswith("flash"):  # has no fp32 kernels
        return next(p for p in supported if p in LOWER)
    return "fp32" if settings.precision == "auto" else settings.precision


def candidates(settings: EngineConfig, device: str, supported: tuple[str, ...], with_quantized: bool) -> list[str]:
    """For auto: fp32, half precision where the device has instructions for it (on a CPU bf16 alone), and quantized ones
    where the user named a tolerance or asked for all that there is."""
    if settings.precision != "auto":
        return [settings.precision]
    half = [p for p in supported if p in LOWER and (device != "cpu" or p == "bf16")]
    return ["fp32", *half, *(p for p in supported if p in QUANTIZED and with_quantized)]


def tolerance_of(settings: EngineConfig, precision: str, reduction: Reduction) -> float:
    """--tolerance; else what the precision is known to need. For auto, quantized values have to be as near as bf16's:
    nobody said that more may be lost."""
    if settings.tolerance is not None and precision != "fp32":
        return settings.tolerance
    is_asked = settings.precision == precision
    return default_tolerance("bf16" if precision in QUANTIZED and not is_asked else precision, reduction)


def judge(of_fp32: Values, of_candidate: Values, reduction: Reduction, tolerance: float) -> Verdict:
    """fp32's values and the candidate's; NaN, or none, stands for a row that cannot be done."""
    reference, candidate = lines(reduction, of_fp32), lines(reduction, of_candidate)
    if reference.shape != candidate.shape:
        return Verdict(False, "some rows of the sample have values at one of the two precisions alone")
    if not len(reference):
        return Verdict(False, "no row of the sample can be computed")
    can_be_done = np.isfinite(reference).all(1)
    if not can_be_done.any():
        return Verdict(False, "no row of the sample can be computed")
    return compare(reference[can_be_done], candidate[can_be_done], reduction, tolerance)
