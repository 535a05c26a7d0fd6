"""Jobs of the null backend in processes of their own, and what they read and write."""

from __future__ import annotations

import io
import json
import os
import sys
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tests import fork_server
from tests.fork_server import NO_TORCH
from tests.models import WORDS

DEADLINE_S = 120  # against hanging, not a measure of speed
PRELOAD = [*NO_TORCH, "s3fs", "aiobotocore.session", "pyarrow.fs"]


def texts(count: int) -> list[str | None]:
    return [None if i % 97 == 5 else f"{WORDS[i % len(WORDS)]} {WORDS[i % 7]} number {i % 50}" for i in range(count)]


def parquet_bytes(count: int, **columns: Any) -> bytes:
    sink = io.BytesIO()
    table = pa.table({"id": range(count), "text": pa.array(texts(count), pa.string())} | columns)
    pq.write_table(table, sink, row_group_size=170)
    return sink.getvalue()


def jsonl_bytes(count: int) -> bytes:
    return b"".join(json.dumps({"id": i, "text": text}).encode() + b"\n" for i, text in enumerate(texts(count)))


def started(model: Any, rows: str, output: str, without: tuple[str, ...] = ()) -> fork_server.Forked:
    """without: packages that the process cannot import."""
    arguments = (model, rows, output, json.dumps(without))
    return fork_server.start(arguments, os.environ, "tests.remote.jobs", PRELOAD)


def finished(model: Any, rows: str, output: str, without: tuple[str, ...] = ()) -> str:
    """What it wrote to stderr."""
    process = started(model, rows, output, without)
    _, said = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 0, said
    return said


if __name__ == "__main__":
    for name in json.loads(sys.argv[4]):
        sys.modules[name] = None  # type: ignore[assignment]  # as if it were not installed
    import packhorse

    packhorse.run(*sys.argv[1:4], backend="null", shard_rows=100, text_column="text", progress="plain")
