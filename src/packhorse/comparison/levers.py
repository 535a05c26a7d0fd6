"""Which contenders stand side by side, and which sweeps, when none are named."""

from __future__ import annotations

from typing import Literal

from packhorse.comparison.contract import Task
from packhorse.comparison.discover import Contender, contender_module, parse_contender

Levels = Literal["quick", "full"]

PEOPLES_WAYS = ("tutorial_loop", "pipeline_1", "pipeline_32", "sentence_transformers_32", "sentence_transformers_128")
LEVERS = (
    "dynamic_padding", "sorted_batches", "sorted_torch", "unpadded", "dynamic_padding:bf16", "dynamic_padding:int8",
    "onnx_runtime", "onnx_runtime:int8", "openvino_runtime", "openvino_runtime:bf16", "openvino_runtime:int8",
)  # fmt: skip
TOGETHER = ("sorted_torch:bf16", "packhorse:auto", "packhorse:bf16", "packhorse:int8")
FULL_ALONE = ("compiled_padding", "unpadded:bf16")
FULL_TOGETHER = (
    "compiled_torch", "compiled_torch:bf16", "packhorse:onnx", "packhorse:onnx:int8", "packhorse:openvino",
    "packhorse:openvino:bf16", "packhorse:openvino:int8",
)  # fmt: skip

BATCH_SIZES = tuple(2**power for power in range(9))  # 1 to 256
MAX_LENGTHS = (128, 256, 512)


def contenders_of(levels: Levels, task: Task) -> list[Contender]:
    """The ways people use, then each lever alone, then levers together; those that do the task."""
    full = levels == "full"
    labels = (*PEOPLES_WAYS, *LEVERS, *(FULL_ALONE if full else ()), *TOGETHER, *(FULL_TOGETHER if full else ()))
    return [parse_contender(label, task) for label in labels if task in contender_module(label.partition(":")[0]).TASKS]


def lengths_to_sweep(max_length: int) -> list[int]:
    """Those that the model takes, and its own."""
    return sorted({*(length for length in MAX_LENGTHS if length <= max_length), max_length})
