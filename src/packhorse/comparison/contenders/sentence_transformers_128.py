"""SentenceTransformer.encode with batch_size=128."""

from __future__ import annotations

from packhorse.comparison.contenders._sentence_transformers import run_encode
from packhorse.comparison.contract import ModelSpec, Options, Precision, Result, Rows, Task

TASKS: tuple[Task, ...] = ("embedding",)
PRECISIONS: tuple[Precision, ...] = ("fp32", "bf16")
NEEDS = ("sentence_transformers",)
IS_SLOW = False


def run(model: ModelSpec, rows: Rows, options: Options) -> Result:
    """See _sentence_transformers.py."""
    return run_encode(model, rows, options, batch_size=128)
