"""packhorse from Python: load() an engine, run() a job, verify() an output."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from packhorse.config import EngineConfig, validated
from packhorse.engine import Engine, run_with
from packhorse.executors.local import Stop
from packhorse.metrics import RunReport
from packhorse.verification import Verification, verify_output


def load(model: str | Path, **settings: Any) -> Engine:
    """Loads a model and gives an Engine with predict(), embed(), stream() and run().

    model: a folder, or an id on the hub. settings, all optional: revision, task, backend, devices, precision,
    exact, batching, batch_size, max_batch_tokens, max_length, dedup, prompt_name, pooling, normalize,
    embedding_format, scores, tokenizer_threads; `packhorse run --help` says what they mean.
    Raises UsageError, RefusedError or ModelError.
    """
    return Engine(validated(EngineConfig, {"model": str(model)} | settings))


def run(model: str | Path, input: Any, output: str | Path, *, stop: Stop | None = None, **settings: Any) -> RunReport:
    """Every row of `input` to `output` on disk, each exactly once; the same call goes on after a stop.

    model: a folder or hub id. input: a path, glob or folder of Parquet or JSONL, a pyarrow table, a pandas or polars
    frame or a datasets.Dataset. output: a folder of parts, or a file ending in .parquet or .jsonl. settings: those of
    load() and of Engine.run(). Raises a PackhorseError; its class says what to do, its exit_code is the command's.
    """
    engine = {k: v for k, v in settings.items() if k in EngineConfig.model_fields}
    job = {k: v for k, v in settings.items() if k not in EngineConfig.model_fields}
    config = validated(EngineConfig, {"model": str(model)} | engine)
    return run_with(None, config, input, str(output), job, stop)


def verify(output: str | Path) -> Verification:
    """Re-checks every byte of an output against its records. Raises DamagedError listing what differs."""
    return verify_output(str(output))
