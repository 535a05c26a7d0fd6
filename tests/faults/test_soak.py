"""The same as the fast tests, for longer: `make test-all` runs these."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.faults.test_kill import kill_and_go_on

ROWS = 400_000
MAX_GROWTH = 1.25  # of the peak memory, for four times the rows


@pytest.mark.slow
@pytest.mark.parametrize("name", ["folder", "whole.parquet"])
def test_100_kills(tmp_path: Path, null_model: Path, name: str) -> None:
    kill_and_go_on(tmp_path, null_model, name, kills=50, deadline_s=600.0)


def peak_of_a_run(model: Path, folder: Path, num_rows: int) -> int:
    """Peak memory in bytes of `packhorse run` with the null backend, in a process of its own."""
    path = folder / f"{num_rows}.parquet"
    with pq.ParquetWriter(path, pa.schema([("text", pa.string())])) as writer:
        for start in range(0, num_rows, 50_000):
            numbers = range(start, start + 50_000)
            texts = [f"row {i} is a film of {i % 97} well made and {i % 13} dull plots" for i in numbers]
            writer.write_table(pa.table({"text": texts}))
    program = (
        "from packhorse.devices.host import rss_peak_bytes; import packhorse, sys; "
        "packhorse.run(*sys.argv[1:], backend='null'); print(rss_peak_bytes())"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(model), str(path), str(folder / f"out{num_rows}")],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return int(done.stdout)


@pytest.mark.slow
def test_memory_does_not_grow_with_the_input(tmp_path: Path, null_model: Path) -> None:
    """The first run has full shards in all lanes already; more rows must not need more memory."""
    few, many = (peak_of_a_run(null_model, tmp_path, n) for n in (ROWS, 4 * ROWS))
    assert many < MAX_GROWTH * few, f"{few / 2**20:.0f} MiB, then {many / 2**20:.0f} MiB"
