"""Load, warm up, time, weigh: the same way for every contender that runs inside the child process."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import psutil

from packhorse.comparison.contract import Measurement, ModelSpec, Options, OverLimitError, Result, Rows, Work
from packhorse.comparison.rows import sample_rows
from packhorse.devices.host import rss_peak_bytes

Predict = Callable[[list[str]], np.ndarray]
Load = Callable[[ModelSpec, Options], Predict]
CountWork = Callable[[list[str], np.ndarray], Work]


def measure(load: Load, count_work: CountWork, model: ModelSpec, rows: Rows, options: Options) -> Result:
    """Time `predict` over all rows, end to end. Tokens are counted after clock and memory are read."""
    predict = load(model, options)
    load_s = seconds_since_start()
    warm_up(predict, rows, options)
    start = time.perf_counter()
    outputs = predict(rows.texts)
    run_s = time.perf_counter() - start

    def count() -> tuple[int, Work]:
        lengths = token_lengths(model, rows.texts)
        return int(lengths.sum()), count_work(rows.texts, lengths)

    return result_of(outputs, run_s, load_s, count, {})


def warm_up(predict: Predict, rows: Rows, options: Options) -> None:
    """A few rows, untimed. Raises OverLimitError where they show that all rows would take too long.

    The first call is slow by itself, so that a bad forecast is made anew from a second one.
    """
    texts = [rows.texts[row] for row in sample_rows(len(rows.texts), options.warmup_rows)]
    if _forecast_s(predict, texts, len(rows.texts)) > _left_s(options):
        forecast_s, left_s = _forecast_s(predict, texts, len(rows.texts)), _left_s(options)
        if forecast_s > left_s:
            raise OverLimitError(
                f"over the limit of {options.limit_s:g} s: after {seconds_since_start():.0f} s of set-up and warm-up, "
                f"{len(rows.texts):,} rows would take {forecast_s:.0f} s more, going by {len(texts)} of them"
            )


def _forecast_s(predict: Predict, texts: list[str], num_rows: int) -> float:
    start = time.perf_counter()
    predict(texts)
    return (time.perf_counter() - start) * num_rows / len(texts)


def _left_s(options: Options) -> float:
    return float("inf") if options.limit_s is None else options.limit_s - seconds_since_start()


def result_of(
    outputs: np.ndarray,
    run_s: float,
    load_s: float,
    count: Callable[[], tuple[int, Work]],
    details: dict[str, Any],
) -> Result:
    """What a contender returns when the clock has stopped. `count` gives real tokens and what was computed; it is
    called after the memory is read."""
    peak_bytes, torch_says = rss_peak_bytes(), torch_details()
    real_tokens, work = count()
    measurement = Measurement(
        num_rows=len(outputs),
        run_s=run_s,
        load_s=load_s,
        wall_s=load_s + run_s,
        peak_bytes=peak_bytes,
        real_tokens=real_tokens,
        computed_tokens=work.computed_tokens,
        padding_efficiency=real_tokens / work.computed_tokens,
        num_batches=work.num_batches,
        details=torch_says | details,
    )
    return Result(measurement, outputs)


def seconds_since_start() -> float:
    """Since this process was started, imports included."""
    return time.time() - psutil.Process().create_time()


def token_lengths(model: ModelSpec, texts: list[str]) -> np.ndarray:
    """Tokens of each text after truncation, special tokens included: int64 [N]."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model.transformer)
    encoded = tokenizer(texts, truncation=True, max_length=model.max_length, return_attention_mask=False)
    return np.array([len(ids) for ids in encoded["input_ids"]], dtype=np.int64)


def rows_in_order(num_rows: int, batch_size: int) -> list[np.ndarray]:
    """Row numbers of one batch after the other, in input order."""
    return [np.arange(start, min(start + batch_size, num_rows)) for start in range(0, num_rows, batch_size)]


def padded_work(lengths: np.ndarray, batches: Sequence[np.ndarray]) -> Work:
    """What is computed when every batch is padded to its longest row."""
    return Work(sum(int(lengths[rows].max()) * len(rows) for rows in batches), len(batches))


def torch_details() -> dict[str, Any]:
    """Device, threads, and the peak memory on a GPU."""
    import torch

    if not torch.cuda.is_available():
        return {"device": "cpu", "torch_threads": torch.get_num_threads()}
    return {"device": torch.cuda.get_device_name(), "peak_device_bytes": torch.cuda.max_memory_allocated()}
