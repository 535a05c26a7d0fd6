"""A backend of packhorse in the plain loop: Hugging Face's tokenizer, 32 rows a batch in input order, padded."""

from __future__ import annotations

import time

import numpy as np

from packhorse.comparison.bare_engine import BareEngine
from packhorse.comparison.contenders._loop import BATCH_SIZE
from packhorse.comparison.contenders._measure import result_of, seconds_since_start, warm_up
from packhorse.comparison.contract import Backend, ModelSpec, Options, Result, Rows, Work


def run_backend(model: ModelSpec, rows: Rows, options: Options, backend: Backend) -> Result:
    """Measure it. Converting the model, and scales of int8 from its first rows, are in the set-up."""
    settings = {"tokenizer": "hf", "batching": "fixed", "batch_size": options.batch_size or BATCH_SIZE}
    engine = BareEngine(model, backend, options.precision, options.attention, rows.texts, **settings)
    load_s = seconds_since_start()

    def predict(texts: list[str]) -> np.ndarray:
        tokens = engine.tokenize(texts)
        return engine.forward(tokens, engine.batches(tokens.lengths))

    def count() -> tuple[int, Work]:
        lengths = engine.tokenize(rows.texts).lengths
        batches = engine.batches(lengths)
        return int(lengths.sum()), Work(engine.computed_tokens(lengths, batches), batches.num_batches)

    warm_up(predict, rows, options)
    start = time.perf_counter()
    outputs = predict(rows.texts)
    run_s = time.perf_counter() - start
    return result_of(outputs, run_s, load_s, count, {"plan": engine.plan.model_dump(mode="json")})
