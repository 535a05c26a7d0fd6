"""What makers promise of their GPUs: dense peaks, without the doubling that structured sparsity gives, and bandwidth.

Sources, by their names: NVIDIA's datasheets of the B200 (HGX), H200, H100, A100, L40S, L40, L4, A40, A30, A10, A10G,
T4 and V100; NVIDIA's whitepapers of the Blackwell RTX, Ada and Ampere GA102 architectures for the RTX cards; AMD's
datasheets of the Instinct MI300X and MI250X. Where a datasheet gives numbers with sparsity, this is half of them. fp32
is that of the plain units (with torch's default, TF32 is not used); bf16, fp16 and fp8 are those with sums in fp32,
as torch computes, which GeForce cards do at half the rate.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple


class Datasheet(NamedTuple):
    flops_per_s: Mapping[str, float]  # by precision; tf32 too; those that the device has
    bytes_per_s: float  # of its memory


def _sheet(gb_per_s: float, **tflops: float) -> Datasheet:
    return Datasheet({name: rate * 1e12 for name, rate in tflops.items()}, gb_per_s * 1e9)


def _ampere(gb_per_s: float) -> Datasheet:
    return _sheet(gb_per_s, fp32=19.5, tf32=156, bf16=312, fp16=312, int8=624)


def _hopper(gb_per_s: float) -> Datasheet:
    return _sheet(gb_per_s, fp32=67, tf32=494.7, bf16=989.4, fp16=989.4, int8=1978.9, fp8=1978.9)


def _hopper_nvl(gb_per_s: float) -> Datasheet:
    return _sheet(gb_per_s, fp32=60, tf32=417.5, bf16=835.5, fp16=835.5, int8=1670.5, fp8=1670.5)


# By the whole name that torch gives, without the maker's: a slice of a GPU (MIG), a laptop's or a "D" has other rates.
_SHEETS: dict[str, Datasheet] = {
    r"b200": _sheet(8_000, fp32=75, tf32=1_125, bf16=2_250, fp16=2_250, int8=4_500, fp8=4_500),
    r"h200": _hopper(4_800),
    r"h200 nvl": _hopper_nvl(4_800),
    r"h100 80gb hbm3|h100 sxm5?( 80gb)?": _hopper(3_350),
    r"h100 pcie": _sheet(2_000, fp32=51, tf32=378, bf16=756.5, fp16=756.5, int8=1_513, fp8=1_513),
    r"h100 nvl": _hopper_nvl(3_900),
    r"a100 sxm4 40gb|a100 pcie 40gb": _ampere(1_555),
    r"a100 sxm4 80gb": _ampere(2_039),
    r"a100 80gb pcie|a100 pcie 80gb": _ampere(1_935),
    r"l40s": _sheet(864, fp32=91.6, tf32=183, bf16=362, fp16=362, int8=733, fp8=733),
    r"l40": _sheet(864, fp32=90.5, tf32=90.5, bf16=181, fp16=181, int8=362, fp8=362),
    r"l4": _sheet(300, fp32=30.3, tf32=60, bf16=121, fp16=121, int8=242.5, fp8=242.5),
    r"a10": _sheet(600, fp32=31.2, tf32=62.5, bf16=125, fp16=125, int8=250),
    r"a10g": _sheet(600, fp32=35, tf32=35, bf16=70, fp16=70, int8=140),
    r"a30": _sheet(933, fp32=10.3, tf32=82, bf16=165, fp16=165, int8=330),
    r"a40": _sheet(696, fp32=37.4, tf32=74.8, bf16=149.7, fp16=149.7, int8=299.3),
    r"t4": _sheet(320, fp32=8.1, fp16=65, int8=130),
    r"v100 sxm2 (16|32)gb": _sheet(900, fp32=15.7, fp16=125),
    r"v100 pcie (16|32)gb": _sheet(900, fp32=14, fp16=112),
    r"v100s pcie 32gb": _sheet(1_134, fp32=16.4, fp16=130),
    r"rtx 6000 ada( generation)?": _sheet(960, fp32=91.1, tf32=182.1, bf16=364.2, fp16=364.2, int8=728.5, fp8=728.5),
    r"rtx a6000": _sheet(768, fp32=38.7, tf32=77.4, bf16=154.8, fp16=154.8, int8=309.7),
    r"rtx 5090": _sheet(1_792, fp32=104.8, tf32=104.8, bf16=209.5, fp16=209.5, int8=838, fp8=419),
    r"rtx 4090": _sheet(1_008, fp32=82.6, tf32=82.6, bf16=165.2, fp16=165.2, int8=660.6, fp8=330.3),
    r"rtx 3090": _sheet(936, fp32=35.6, tf32=35.6, bf16=71, fp16=71, int8=284),
    r"mi300x( oam)?": _sheet(5_300, fp32=163.4, tf32=653.7, bf16=1307.4, fp16=1307.4, int8=2614.9, fp8=2614.9),
    # One of the card's two dies, each of which torch sees as a device. fp32 is that of its matrix units.
    r"mi250x": _sheet(1_638.4, fp32=47.85, bf16=191.5, fp16=191.5, int8=191.5),
}
_MAKERS = re.compile(r"^((nvidia|amd|tesla|geforce|instinct|graphics)\s+)+")


def find_datasheet(device_name: str) -> Datasheet | None:
    """By torch's name of the device; None where it is not listed."""
    name = re.sub(r"[\s_-]+", " ", device_name.lower()).strip()
    name = _MAKERS.sub("", name)
    return next((sheet for pattern, sheet in _SHEETS.items() if re.fullmatch(pattern, name)), None)
