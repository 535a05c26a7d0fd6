"""transformers.pipeline with batch_size=32, rows in input order."""

from __future__ import annotations

from packhorse.comparison.contenders._pipeline import run_pipeline
from packhorse.comparison.contract import ModelSpec, Options, Precision, Result, Rows, Task

TASKS: tuple[Task, ...] = ("text-classification", "embedding")
PRECISIONS: tuple[Precision, ...] = ("fp32", "bf16")
IS_SLOW = False


def run(model: ModelSpec, rows: Rows, options: Options) -> Result:
    """See _pipeline.py."""
    return run_pipeline(model, rows, options, batch_size=32)
