"""What goes together: every combination with what comes of it, as data, and the table of the README made of it.

Covered are all combinations of the README's two tables, and every pair of values of two dimensions at least once:
VALUES below, which test_combinations.py holds against ALL. Two workers, the eighth dimension, are in every combination
of an encoder on a processor of two cores.
"""

from __future__ import annotations

from typing import NamedTuple

ENCODERS = ("text-classification", "feature-extraction")
CONTINUOUS, WITH_ENCODER = "text-generation", "text2text-generation"
BITSANDBYTES_INT8, TORCHAO_INT8 = "int8 bitsandbytes", "int8 torchao"
PRECISIONS = ("fp32", "bf16", "int8", BITSANDBYTES_INT8, TORCHAO_INT8, "int4 bitsandbytes", "int4 torchao")
WORKS = ""  # the outcome of what is no error

VALUES: dict[str, tuple[str, ...]] = {
    "task": (*ENCODERS, CONTINUOUS, WITH_ENCODER),
    "backend": ("torch", "onnx", "openvino", "vllm", "null"),
    "precision": PRECISIONS,
    "attention": ("auto", "sdpa", "eager", "sdpa:math", "flash_attention_2"),
    "batching": ("packed", "padded"),
    "device_map": ("none", "auto"),
}


class Combination(NamedTuple):
    """outcome: WORKS, or what the refusal begins with: the flag and why."""

    task: str
    backend: str
    precision: str
    attention: str
    batching: str  # packed, padded; where text is generated: packed is --engine continuous, padded --engine static
    device_map: str
    outcome: str

    @property
    def key(self) -> tuple[str, ...]:
        return tuple(self[:6])


def _all(outcomes: dict[str, tuple[tuple[str, str, str, str, str, str], ...]]) -> tuple[Combination, ...]:
    return tuple(Combination(*key, outcome) for outcome, keys in outcomes.items() for key in keys)


# By outcome: task, backend, precision, attention, batching, device map.
ALL = _all({
    WORKS: (
        ("text-classification", "torch", "fp32", "auto", "packed", "none"),
        ("text-classification", "torch", "fp32", "auto", "padded", "none"),
        ("text-generation", "torch", "fp32", "auto", "packed", "none"),
        ("text-generation", "torch", "fp32", "auto", "padded", "none"),
        ("text2text-generation", "torch", "fp32", "auto", "padded", "none"),
        ("text-classification", "torch", "fp32", "auto", "packed", "auto"),
        ("text-generation", "torch", "fp32", "auto", "padded", "auto"),
        ("text-classification", "onnx", "fp32", "auto", "padded", "none"),
        ("text-classification", "openvino", "fp32", "auto", "padded", "none"),
        ("text-classification", "torch", "bf16", "auto", "packed", "none"),
        ("text-classification", "torch", "bf16", "auto", "padded", "none"),
        ("text-generation", "torch", "bf16", "auto", "packed", "none"),
        ("text-generation", "torch", "bf16", "auto", "padded", "none"),
        ("text2text-generation", "torch", "bf16", "auto", "padded", "none"),
        ("text-classification", "torch", "bf16", "auto", "packed", "auto"),
        ("text-generation", "torch", "bf16", "auto", "padded", "auto"),
        ("text-classification", "openvino", "bf16", "auto", "padded", "none"),
        ("text-classification", "torch", "int8", "auto", "packed", "none"),
        ("text-classification", "torch", "int8", "auto", "padded", "none"),
        ("text-generation", "torch", "int8", "auto", "packed", "none"),
        ("text-generation", "torch", "int8", "auto", "padded", "none"),
        ("text2text-generation", "torch", "int8", "auto", "padded", "none"),
        ("text-classification", "onnx", "int8", "auto", "padded", "none"),
        ("text-classification", "openvino", "int8", "auto", "padded", "none"),
        ("text-classification", "torch", "int8 bitsandbytes", "auto", "padded", "none"),
        ("text-generation", "torch", "int8 bitsandbytes", "auto", "packed", "none"),
        ("text-generation", "torch", "int8 bitsandbytes", "auto", "padded", "none"),
        ("text2text-generation", "torch", "int8 bitsandbytes", "auto", "padded", "none"),
        ("text-classification", "torch", "int8 torchao", "auto", "packed", "none"),
        ("text-classification", "torch", "int8 torchao", "auto", "padded", "none"),
        ("text-generation", "torch", "int8 torchao", "auto", "packed", "none"),
        ("text-generation", "torch", "int8 torchao", "auto", "padded", "none"),
        ("text2text-generation", "torch", "int8 torchao", "auto", "padded", "none"),
        ("text-classification", "torch", "int4 bitsandbytes", "auto", "packed", "none"),
        ("text-classification", "torch", "int4 bitsandbytes", "auto", "padded", "none"),
        ("text-generation", "torch", "int4 bitsandbytes", "auto", "packed", "none"),
        ("text-generation", "torch", "int4 bitsandbytes", "auto", "padded", "none"),
        ("text2text-generation", "torch", "int4 bitsandbytes", "auto", "padded", "none"),
        ("text-classification", "torch", "int4 torchao", "auto", "packed", "none"),
        ("text-classification", "torch", "int4 torchao", "auto", "padded", "none"),
        ("text-generation", "torch", "int4 torchao", "auto", "packed", "none"),
        ("text-generation", "torch", "int4 torchao", "auto", "padded", "none"),
        ("text2text-generation", "torch", "int4 torchao", "auto", "padded", "none"),
        ("text-classification", "torch", "fp32", "sdpa", "padded", "none"),
        ("text-generation", "torch", "fp32", "sdpa", "padded", "none"),
        ("text2text-generation", "torch", "fp32", "sdpa", "padded", "none"),
        ("text-classification", "torch", "fp32", "eager", "padded", "none"),
        ("text-generation", "torch", "fp32", "eager", "padded", "none"),
        ("text2text-generation", "torch", "fp32", "eager", "padded", "none"),
        ("text-classification", "torch", "fp32", "sdpa:math", "padded", "none"),
        ("text-generation", "torch", "fp32", "sdpa:math", "padded", "none"),
        ("text2text-generation", "torch", "fp32", "sdpa:math", "padded", "none"),
        ("feature-extraction", "torch", "bf16", "sdpa", "padded", "auto"),
        ("feature-extraction", "torch", "int8", "eager", "padded", "none"),
        ("feature-extraction", "torch", "fp32", "auto", "packed", "none"),
        ("feature-extraction", "torch", "int4 torchao", "sdpa:math", "padded", "none"),
        ("text2text-generation", "torch", "bf16", "sdpa:math", "padded", "auto"),
        ("feature-extraction", "torch", "int8 bitsandbytes", "eager", "padded", "none"),
        ("feature-extraction", "torch", "int4 bitsandbytes", "sdpa:math", "padded", "none"),
        ("text-generation", "torch", "bf16", "eager", "padded", "auto"),
        ("feature-extraction", "torch", "int8 torchao", "sdpa:math", "padded", "none"),
        ("text2text-generation", "torch", "int8", "sdpa", "padded", "none"),
        ("feature-extraction", "torch", "int4 bitsandbytes", "eager", "padded", "none"),
        ("text-generation", "torch", "int8 bitsandbytes", "sdpa", "padded", "none"),
        ("text-classification", "torch", "int8", "sdpa:math", "padded", "none"),
        ("feature-extraction", "torch", "int8 torchao", "sdpa", "padded", "none"),
        ("feature-extraction", "torch", "int8 torchao", "eager", "padded", "none"),
        ("text-classification", "torch", "int4 torchao", "eager", "padded", "none"),
        ("text-generation", "torch", "int4 torchao", "sdpa", "padded", "none"),
        ("text2text-generation", "torch", "int4 bitsandbytes", "sdpa", "padded", "none"),
        ("text-classification", "torch", "int8 bitsandbytes", "sdpa:math", "padded", "none"),
        ("feature-extraction", "onnx", "fp32", "auto", "padded", "none"),
        ("feature-extraction", "openvino", "fp32", "auto", "padded", "none"),
    ),
    "--precision bf16: onnxruntime's CPUExecutionProvider has kernels for fp32, int8": (
        ("text-classification", "onnx", "bf16", "auto", "padded", "none"),
    ),
    "--precision int8: packhorse's own int8 is for a model on one device": (
        ("text-classification", "torch", "int8", "auto", "packed", "auto"),
    ),
    "--device-map with --precision int8 by bitsandbytes: quantized layers are not brought from the disk": (
        ("text-generation", "torch", "int8", "auto", "padded", "auto"),
        ("text-classification", "torch", "int8 bitsandbytes", "auto", "packed", "auto"),
        ("text-generation", "torch", "int8 bitsandbytes", "auto", "padded", "auto"),
    ),
    "--device-map with --precision int4 by bitsandbytes: quantized layers are not brought from the disk": (
        ("text-classification", "torch", "int4 bitsandbytes", "auto", "packed", "auto"),
        ("text-generation", "torch", "int4 bitsandbytes", "auto", "padded", "auto"),
    ),
    "--batching packed: this model runs padded": (
        ("text-classification", "torch", "int8 bitsandbytes", "auto", "packed", "none"),
    ),
    "--quantization: belongs to --backend torch or vllm, this is onnx": (
        ("text-classification", "onnx", "int8 bitsandbytes", "auto", "padded", "none"),
        ("text-classification", "onnx", "int8 torchao", "auto", "padded", "none"),
        ("text-generation", "onnx", "int8 torchao", "flash_attention_2", "packed", "auto"),
    ),
    "--quantization: belongs to --backend torch or vllm, this is openvino": (
        ("text-classification", "openvino", "int8 bitsandbytes", "auto", "padded", "none"),
        ("text-classification", "openvino", "int8 torchao", "auto", "padded", "none"),
    ),
    "--device-map with --precision int8 by torchao: quantized layers are not brought from the disk": (
        ("text-classification", "torch", "int8 torchao", "auto", "packed", "auto"),
        ("text-generation", "torch", "int8 torchao", "auto", "padded", "auto"),
    ),
    "--device-map with --precision int4 by torchao: quantized layers are not brought from the disk": (
        ("text-classification", "torch", "int4 torchao", "auto", "packed", "auto"),
        ("text-generation", "torch", "int4 torchao", "auto", "padded", "auto"),
    ),
    "--precision int4: backend onnx has fp32, fp16, bf16, int8": (
        ("text-classification", "onnx", "int4 bitsandbytes", "auto", "padded", "none"),
        ("text-classification", "onnx", "int4 torchao", "auto", "padded", "none"),
    ),
    "--precision int4: backend openvino has fp32, bf16, int8": (
        ("text-classification", "openvino", "int4 bitsandbytes", "auto", "padded", "none"),
        ("text-classification", "openvino", "int4 torchao", "auto", "padded", "none"),
    ),
    "--batching packed needs --attention packed, not sdpa": (
        ("text-classification", "torch", "fp32", "sdpa", "packed", "none"),
    ),
    "--engine continuous: --attention sdpa is for padded batches": (
        ("text-generation", "torch", "fp32", "sdpa", "packed", "none"),
    ),
    "--attention sdpa: ONNX Runtime computes the graph's own": (
        ("text-classification", "onnx", "fp32", "sdpa", "padded", "none"),
    ),
    "--attention sdpa: OpenVINO computes attention its own way": (
        ("text-classification", "openvino", "fp32", "sdpa", "padded", "none"),
    ),
    "--batching packed needs --attention packed, not eager": (
        ("text-classification", "torch", "fp32", "eager", "packed", "none"),
    ),
    "--engine continuous: --attention eager is for padded batches": (
        ("text-generation", "torch", "fp32", "eager", "packed", "none"),
    ),
    "--attention eager: ONNX Runtime computes the graph's own": (
        ("text-classification", "onnx", "fp32", "eager", "padded", "none"),
    ),
    "--attention eager: OpenVINO computes attention its own way": (
        ("text-classification", "openvino", "fp32", "eager", "padded", "none"),
    ),
    "--batching packed needs --attention packed, not sdpa:math": (
        ("text-classification", "torch", "fp32", "sdpa:math", "packed", "none"),
        ("text-classification", "null", "bf16", "sdpa:math", "packed", "none"),
    ),
    "--engine continuous: --attention sdpa:math is for padded batches": (
        ("text-generation", "torch", "fp32", "sdpa:math", "packed", "none"),
    ),
    "--attention sdpa:math: ONNX Runtime computes the graph's own": (
        ("text-classification", "onnx", "fp32", "sdpa:math", "padded", "none"),
    ),
    "--attention sdpa:math: OpenVINO computes attention its own way": (
        ("text-classification", "openvino", "fp32", "sdpa:math", "padded", "none"),
    ),
    "--batching packed needs --attention packed, not flash_attention_2": (
        ("text-classification", "torch", "bf16", "flash_attention_2", "packed", "none"),
        ("feature-extraction", "null", "int4 torchao", "flash_attention_2", "packed", "auto"),
    ),
    "--attention flash_attention_2: needs an NVIDIA or AMD GPU": (
        ("text-classification", "torch", "bf16", "flash_attention_2", "padded", "none"),
        ("text-generation", "torch", "bf16", "flash_attention_2", "packed", "none"),
        ("text-generation", "torch", "bf16", "flash_attention_2", "padded", "none"),
        ("text2text-generation", "torch", "bf16", "flash_attention_2", "padded", "none"),
    ),
    "--attention flash_attention_2: ONNX Runtime computes the graph's own": (
        ("text-classification", "onnx", "bf16", "flash_attention_2", "padded", "none"),
    ),
    "--attention flash_attention_2: OpenVINO computes attention its own way": (
        ("text-classification", "openvino", "bf16", "flash_attention_2", "padded", "none"),
    ),
    "--precision int8: backend vllm has fp32, bf16, fp16, fp8, int4": (
        ("text2text-generation", "vllm", "int8 bitsandbytes", "flash_attention_2", "packed", "auto"),
        ("text-generation", "vllm", "int8 torchao", "auto", "padded", "none"),
        ("feature-extraction", "vllm", "int8", "sdpa:math", "padded", "auto"),
    ),
    "--backend vllm: only generates": (
        ("feature-extraction", "vllm", "bf16", "eager", "padded", "none"),
        ("text-classification", "vllm", "fp32", "sdpa", "padded", "none"),
        ("text-classification", "vllm", "int4 torchao", "auto", "padded", "none"),
    ),
    "--precision int4: backend null has fp32": (
        ("text-generation", "null", "int4 bitsandbytes", "sdpa", "padded", "none"),
    ),
    "--attention flash_attention_2 has no fp32 kernels: --precision bf16 or fp16 goes with it": (
        ("text2text-generation", "openvino", "fp32", "flash_attention_2", "packed", "auto"),
    ),
    "--precision int8: backend null has fp32": (
        ("text2text-generation", "null", "int8 torchao", "auto", "padded", "auto"),
        ("text-classification", "null", "int8", "eager", "padded", "none"),
        ("text2text-generation", "null", "int8 bitsandbytes", "sdpa:math", "packed", "none"),
    ),
    "--engine continuous: belongs to --backend torch, this is null": (
        ("text-generation", "null", "fp32", "sdpa:math", "packed", "none"),
    ),
    "--engine static: belongs to --backend torch, this is vllm": (
        ("text-generation", "vllm", "int4 bitsandbytes", "flash_attention_2", "padded", "auto"),
    ),
    "--device-map: belongs to --backend torch or vllm, this is onnx": (
        ("text2text-generation", "onnx", "int8", "flash_attention_2", "padded", "auto"),
    ),
    "--device-map: belongs to --backend torch or vllm, this is openvino": (
        ("text-generation", "openvino", "int8", "eager", "packed", "auto"),
    ),
})  # fmt: skip
