"""Rows for all integrations, some of them in error, and what `packhorse run` makes of them."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

import packhorse
from tests.models import WORDS

NUM_ROWS = 60
TOLERANCE = 2e-6  # of a number in fp32: rows share batches with other rows than in the job


def rows() -> pa.Table:
    draw = random.Random(5)
    texts = [" ".join(draw.choices(WORDS, k=draw.randint(1, 40))) for _ in range(NUM_ROWS)]
    return pa.table({"id": range(NUM_ROWS), "text": [None if i % 13 == 4 else t for i, t in enumerate(texts)]})


def of_run(model: Path, folder: Path, **settings: Any) -> list[dict[str, Any]]:
    """Rows of the output of a job, in order."""
    packhorse.run(model, rows(), folder, text_column="text", tune="off", **settings)
    return list(pq.read_table(folder).to_pylist())


def assert_same(found: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    """Same columns and rows in one order; numbers up to rounding."""
    assert len(found) == len(expected) == NUM_ROWS
    errors = 0
    for mine, theirs in zip(found, expected, strict=True):
        assert list(mine) == list(theirs)
        for name, value in theirs.items():
            assert is_near(mine[name], value), (name, mine[name], value)
        errors += theirs["error"] is not None
    assert errors == 5


def is_near(mine: Any, theirs: Any) -> bool:
    if isinstance(theirs, float):
        return abs(float(mine) - theirs) <= TOLERANCE
    if isinstance(theirs, list):
        return len(mine) == len(theirs) and all(map(is_near, mine, theirs))
    return bool(mine == theirs)
