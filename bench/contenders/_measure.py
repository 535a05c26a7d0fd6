"""Load, warm up, time, weigh: the same way for every contender that runs inside the child process."""

import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from bench.contract import Measurement, ModelSpec, Options, Result, Rows
from bench.workloads import sample_rows

Predict = Callable[[list[str]], np.ndarray]
Load = Callable[[ModelSpec, Options], Predict]
ComputedTokens = Callable[[list[str], np.ndarray], int]


def measure(load: Load, computed_tokens: ComputedTokens, model: ModelSpec, rows: Rows, options: Options) -> Result:
    """Time `predict` over all rows, end to end. Tokens are counted after clock and memory are read."""
    predict = load(model, options)
    load_s = seconds_since_start()
    predict([rows.texts[row] for row in sample_rows(len(rows.texts), options.warmup_rows)])
    start = time.perf_counter()
    outputs = predict(rows.texts)
    run_s = time.perf_counter() - start

    def count_tokens() -> tuple[int, int]:
        lengths = token_lengths(model, rows.texts)
        return int(lengths.sum()), computed_tokens(rows.texts, lengths)

    return result_of(outputs, run_s, load_s, count_tokens, {})


def result_of(
    outputs: np.ndarray,
    run_s: float,
    load_s: float,
    count_tokens: Callable[[], tuple[int, int]],
    details: dict[str, Any],
) -> Result:
    """What a contender returns when the clock has stopped. `count_tokens` gives real and computed ones; it is called
    after the memory is read."""
    peak_bytes, torch_says = peak_rss_bytes(), torch_details()
    real_tokens, computed = count_tokens()
    measurement = Measurement(
        num_rows=len(outputs),
        run_s=run_s,
        load_s=load_s,
        wall_s=load_s + run_s,
        peak_bytes=peak_bytes,
        real_tokens=real_tokens,
        computed_tokens=computed,
        padding_efficiency=real_tokens / computed,
        details=torch_says | details,
    )
    return Result(measurement, outputs)


def seconds_since_start() -> float:
    """Since this process was started, imports included."""
    return time.time() - psutil.Process().create_time()


def token_lengths(model: ModelSpec, texts: list[str]) -> np.ndarray:
    """Tokens of each text after truncation, special tokens included: int64 [N]."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model.folder)
    encoded = tokenizer(texts, truncation=True, max_length=model.max_length, return_attention_mask=False)
    return np.array([len(ids) for ids in encoded["input_ids"]], dtype=np.int64)


def padded_tokens(lengths: np.ndarray, batch_size: int) -> int:
    """Tokens computed when rows run in this order, each batch padded to its longest."""
    starts = range(0, len(lengths), batch_size)
    return sum(int(batch.max()) * len(batch) for batch in (lengths[start : start + batch_size] for start in starts))


def peak_rss_bytes() -> int:
    """Highest resident memory of this process so far.

    On Linux from VmHWM: `ru_maxrss` there starts at the parent's peak and would hide a small child.
    """
    status = Path("/proc/self/status")
    if status.is_file():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def torch_details() -> dict[str, Any]:
    """Device, threads, and the peak memory on a GPU."""
    import torch

    if not torch.cuda.is_available():
        return {"device": "cpu", "torch_threads": torch.get_num_threads()}
    return {"device": torch.cuda.get_device_name(), "peak_device_bytes": torch.cuda.max_memory_allocated()}
