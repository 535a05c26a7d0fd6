"""bitsandbytes: LLM.int8 (Dettmers et al. 2022) and 4-bit NormalFloat or float (QLoRA, Dettmers et al. 2023)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from packhorse.backends.torch.quantization.reading import Read, boolean, dtype_of, names, number, one_of, read_options

BLOCK = 64  # weights that share one scale; what transformers leaves it at
CPU_ROWS = 32  # output features that the CPU's 4-bit product takes at a time
SKIPPED = "llm_int8_skip_modules"  # it holds for 4 bits too

# llm_int8_has_fp16_weight is left out: it keeps half-precision weights, for training.
INT8: Mapping[str, Read] = {
    "llm_int8_threshold": number,
    SKIPPED: names,
    "llm_int8_enable_fp32_cpu_offload": boolean,
}
INT4: Mapping[str, Read] = {
    "bnb_4bit_quant_type": one_of(("nf4", "fp4")),
    "bnb_4bit_use_double_quant": boolean,
    "bnb_4bit_compute_dtype": dtype_of(("bfloat16", "float16", "float32")),
    "bnb_4bit_quant_storage": dtype_of(("uint8", "bfloat16", "float16", "float32")),
    SKIPPED: names,
    "llm_int8_enable_fp32_cpu_offload": boolean,
}


def read(precision: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of BitsAndBytesConfig. Raises UsageError."""
    return read_options(options, INT8 if precision == "int8" else INT4, f"bitsandbytes {precision}")


def config(precision: str, options: Mapping[str, Any], compute_dtype: Any, skipped: Sequence[str] | None) -> Any:
    """A BitsAndBytesConfig. compute_dtype: torch's, that 4-bit products run in unless the options say otherwise; a CPU
    with AVX512-BF16 computes them in bf16 in any case. skipped: modules that stay as they are."""
    from transformers import BitsAndBytesConfig

    chosen = read(precision, options)
    kept = [*(skipped or ()), *chosen.pop(SKIPPED, ())]
    if kept:
        chosen[SKIPPED] = kept
    if precision == "int8":
        return BitsAndBytesConfig(load_in_8bit=True, **chosen)
    usual = {"bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": compute_dtype}
    return BitsAndBytesConfig(load_in_4bit=True, **usual | chosen)


def fits(precision: str, device: str, out_features: int, in_features: int) -> bool:
    """Whether a layer of that shape can be quantized. On a CPU with AVX512-BF16 bitsandbytes' 4-bit product fails on
    others by an assertion in the first forward; on other CPUs they stay too, so that a model means the same."""
    if precision == "int8" or device != "cpu":
        return True
    return out_features % CPU_ROWS == 0 and in_features % BLOCK == 0
