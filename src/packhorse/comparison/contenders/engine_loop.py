"""packhorse's backend as a bare loop: rows tokenized and planned beforehand, only the forwards are timed.

What a backend can do, and so the ceiling of `packhorse` with the same backend, attention and precision: named together,
their ratio is shown below the table. `load s` ends when the model is loaded; tokenizing is in neither time, but stands
in the details as `tokenize_s`. Real and computed tokens are the backend's own.
"""

from __future__ import annotations

import time

import numpy as np

from packhorse.comparison.contenders._measure import result_of, seconds_since_start
from packhorse.comparison.contract import ATTENTIONS, BACKENDS, ModelSpec, Options, Precision, Result, Rows, Task, Work
from packhorse.comparison.rows import sample_rows

__all__ = ["ATTENTIONS", "BACKENDS", "BY_DEFAULT", "IS_SLOW", "PRECISIONS", "TASKS", "run"]

PRECISIONS: tuple[Precision, ...] = ("fp32", "bf16", "int8")
TASKS: tuple[Task, ...] = ("text-classification", "embedding")
BY_DEFAULT: tuple[str, ...] = ()  # no way that people use, and its backends are optional
IS_SLOW = False


def run(model: ModelSpec, rows: Rows, options: Options) -> Result:
    """Load, tokenize, plan, warm up; then the clock runs."""
    from packhorse.comparison.bare_engine import BareEngine

    engine = BareEngine(model, options.backend, options.precision, options.attention, rows.texts)
    load_s = seconds_since_start()
    start = time.perf_counter()
    tokens = engine.tokenize(rows.texts)
    tokenize_s = time.perf_counter() - start
    some = tokens.take(np.array(sample_rows(tokens.num_rows, options.warmup_rows), np.int64))
    engine.forward(some, engine.batches(some.lengths))
    batches = engine.batches(tokens.lengths)
    start = time.perf_counter()
    outputs = engine.forward(tokens, batches)
    run_s = time.perf_counter() - start
    details = {"tokenize_s": tokenize_s, "plan": engine.plan.model_dump(mode="json")}
    work = Work(engine.computed_tokens(tokens.lengths, batches), batches.num_batches)
    return result_of(outputs, run_s, load_s, lambda: (int(tokens.lengths.sum()), work), details)
