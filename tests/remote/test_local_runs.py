"""A run from a disk to a disk, and its help, load nothing of what other machines are reached with."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.remote.jobs import jsonl_bytes, parquet_bytes

SOURCE = """
import json, sys
from packhorse.__main__ import main
for command in json.loads(sys.argv[1]):
    sys.argv = ["packhorse", *command]
    try:
        main()
    except SystemExit as error:
        assert not error.code, command
    watched = {"fsspec", "s3fs", "gcsfs", "aiohttp", "aiobotocore", "botocore", "boto3"}
    print(command, sorted(watched & set(sys.modules)), file=sys.stderr)
"""


@pytest.mark.parametrize("kind", ["parquet", "jsonl"])
def test_a_local_run_loads_no_client(null_model: Path, tmp_path: Path, kind: str) -> None:
    """One process carries the commands out, one after another: what any of them loads stays there."""
    rows = tmp_path / f"rows.{kind}"
    rows.write_bytes(parquet_bytes(50) if kind == "parquet" else jsonl_bytes(50))
    commands = [["--help"]]
    for target in (f"{tmp_path}/out/", f"{tmp_path}/x.parquet"):
        commands += [["run", str(null_model), str(rows), "-o", target, "--backend", "null"], ["verify", target]]
    done = subprocess.run([sys.executable, "-c", SOURCE, json.dumps(commands)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    told = [line for line in done.stderr.splitlines() if line.startswith("[")]
    assert told == [f"{command} []" for command in commands]
