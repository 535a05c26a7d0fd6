"""A run from a disk to a disk, and its help, load nothing of what other machines are reached with."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.remote.jobs import jsonl_bytes, parquet_bytes

SOURCE = """
import sys
from packhorse.__main__ import main
try:
    main()
finally:
    watched = {"fsspec", "s3fs", "gcsfs", "aiohttp", "aiobotocore", "botocore", "boto3"}
    print(sorted(watched & set(sys.modules)), file=sys.stderr)
"""


def said(*arguments: str) -> str:
    done = subprocess.run([sys.executable, "-c", SOURCE, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stderr.splitlines()[-1]


@pytest.mark.parametrize("kind", ["parquet", "jsonl"])
def test_a_local_run_loads_no_client(null_model: Path, tmp_path: Path, kind: str) -> None:
    rows = tmp_path / f"rows.{kind}"
    rows.write_bytes(parquet_bytes(50) if kind == "parquet" else jsonl_bytes(50))
    for output in ("out/", "x.parquet"):
        target = str(tmp_path / output)
        assert said("run", str(null_model), str(rows), "-o", target, "--backend", "null") == "[]"
        assert said("verify", target) == "[]"
    assert said("--help") == "[]"
