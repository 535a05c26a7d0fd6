"""Levers: dynamic padding, ONNX Runtime. 32 rows a batch in input order, the model converted by packhorse."""

from __future__ import annotations

from packhorse.comparison.contenders._backend import run_backend
from packhorse.comparison.contract import ModelSpec, Options, Precision, Result, Rows, Task

TASKS: tuple[Task, ...] = ("text-classification", "embedding")
PRECISIONS: tuple[Precision, ...] = ("fp32", "int8")
BY_DEFAULT: tuple[str, ...] = ()
NEEDS = ("onnxruntime", "onnx", "onnxscript")
HAS_BATCH_SIZE = True
IS_SLOW = False


def run(model: ModelSpec, rows: Rows, options: Options) -> Result:
    """See _backend.py."""
    return run_backend(model, rows, options, "onnx")
