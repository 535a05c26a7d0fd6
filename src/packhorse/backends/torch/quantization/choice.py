"""Who makes the quantized weights that --precision asks for."""

from __future__ import annotations

from packhorse.backends.torch.quantization.own import is_installed
from packhorse.devices.host import cpu_precisions
from packhorse.errors import UsageError
from packhorse.generation import QUANTIZED, Quantization

STATIC, BITSANDBYTES, TORCHAO = "static", "bitsandbytes", "torchao"
THRESHOLD = "llm_int8_threshold"
NEEDS = {BITSANDBYTES: ("bitsandbytes", "accelerate"), TORCHAO: ("torchao",)}
EXTRAS = {BITSANDBYTES: "packhorse[bnb]", TORCHAO: "packhorse[torchao]"}
PRECISIONS = {BITSANDBYTES: ("int8", "int4"), TORCHAO: QUANTIZED}
DEVICES = {BITSANDBYTES: ("cpu", "cuda", "xpu"), TORCHAO: ("cpu", "cuda", "xpu", "mps")}


def method_of(precision: str, quantization: Quantization, device: str, generates: bool) -> str:
    """static (packhorse's own int8 of encoders), bitsandbytes or torchao. precision: one of QUANTIZED.

    auto is static for int8 of an encoder on a CPU, else bitsandbytes where that is installed, else torchao. Raises
    UsageError where what was asked for is not installed, or does not go together.
    """
    if quantization.method != "auto":
        _check_asked(quantization.method, precision, device)
        return quantization.method
    if precision == "int8" and device == "cpu" and not generates:
        if quantization.options:
            names = ", ".join(quantization.options)
            raise UsageError(
                f"--quantization-options {names}: int8 of an encoder on a cpu is packhorse's own, which has no "
                "options; --quantization bitsandbytes or torchao goes with them"
            )
        return STATIC
    able = [name for name in NEEDS if precision in PRECISIONS[name] and _kind(device) in DEVICES[name]]
    here = [name for name in able if _has(name)]
    if here:
        return here[0]
    commands = " or ".join(f"pip install '{EXTRAS[name]}'" for name in able)
    raise UsageError(f"--precision {precision}: on {device} it is made by {' or '.join(able)}; {commands}")


def check_unquantized(precision: str, quantization: Quantization) -> None:
    """Raises UsageError where --quantization or its options are given with a precision that is none of theirs."""
    if precision not in QUANTIZED and (quantization.method != "auto" or quantization.options):
        what = "--quantization-options" if quantization.method == "auto" else f"--quantization {quantization.method}"
        raise UsageError(f"{what}: goes with --precision {', '.join(QUANTIZED)}, not {precision}")


def base_of(device: str) -> str:
    """The precision of all that is not quantized: bf16 where the device has instructions for it."""
    if device.startswith("cuda"):
        import torch

        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    if device == "cpu":
        return "bf16" if "bf16" in cpu_precisions() else "fp32"
    return "bf16" if device.startswith("xpu") else "fp16"


def is_thread_safe(method: str) -> bool:
    """Whether threads may run one model at the same time, after `layers.settle`.

    bitsandbytes moves its states about in a layer's first forward (Linear8bitLt.init_8bit_state, and the CPU's own
    order of 4-bit weights), where two threads would take them from each other. Later forwards only read: with 2 threads
    200 forwards each gave the bits of one thread, for both widths. torchao's tensors are never changed.
    """
    return method in (STATIC, BITSANDBYTES, TORCHAO)


def is_row_independent(method: str, precision: str, quantization: Quantization) -> bool:
    """Whether a row's activations are quantized without looking at other rows of the batch.

    LLM.int8 takes a column out of the product as soon as one token of the batch is beyond llm_int8_threshold there: a
    row's output then depends on its neighbours (1.4% of the logits' norm between 8 rows together and alone, on a small
    random Llama). With llm_int8_threshold=0 it does not.
    """
    threshold = quantization.options.get(THRESHOLD, 6.0)
    return method != BITSANDBYTES or precision != "int8" or threshold == 0


def _check_asked(method: str, precision: str, device: str) -> None:
    if precision not in PRECISIONS[method]:
        others = [name for name, precisions in PRECISIONS.items() if precision in precisions]
        raise UsageError(
            f"--quantization {method}: has {' and '.join(PRECISIONS[method])}, not {precision}; "
            f"--quantization {others[0]} has it"
        )
    if _kind(device) not in DEVICES[method]:
        others = [name for name, kinds in DEVICES.items() if _kind(device) in kinds]
        raise UsageError(
            f"--quantization {method}: runs on {', '.join(DEVICES[method])}, the device is {device}; "
            f"--quantization {others[0]} runs there"
        )
    if not _has(method):
        missing = [name for name in NEEDS[method] if not is_installed(name)]
        raise UsageError(
            f"--quantization {method}: {' and '.join(missing)} not installed; pip install '{EXTRAS[method]}'"
        )


def _has(method: str) -> bool:
    return all(is_installed(name) for name in NEEDS[method])


def _kind(device: str) -> str:
    return device.partition(":")[0]
