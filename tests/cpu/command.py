"""`python -m packhorse` as a user runs it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tests import fork_server
from tests.fork_server import TRANSFORMERS

DEADLINE_S = 120  # against hanging, not a measure of speed
COMMAND = [sys.executable, "-m", "packhorse"]
ENVIRONMENT = os.environ | {"HF_HUB_OFFLINE": "1", "COLUMNS": "200", "NO_COLOR": "1"}

Done = subprocess.CompletedProcess[str]


def packhorse(*arguments: Any, **settings: Any) -> Done:
    """The finished command, with its exit code, stdout and stderr."""
    command = [*COMMAND, *map(str, arguments)]
    settings = {"env": ENVIRONMENT, "capture_output": True, "text": True, "timeout": DEADLINE_S} | settings
    done: Done = subprocess.run(command, **settings)
    return done


def started(*arguments: Any) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*COMMAND, *map(str, arguments)], env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def forked(*arguments: Any, env: dict[str, str] = ENVIRONMENT, preload: Sequence[str] = TRANSFORMERS) -> Done:
    """As packhorse(), without importing again what is preloaded."""
    return finished(fork_server.start(arguments, env, preload=preload))


def forked_start(*arguments: Any) -> fork_server.Forked:
    """As started(), without importing torch and transformers again."""
    return fork_server.start(arguments, ENVIRONMENT)


def finished(process: fork_server.Forked) -> Done:
    stdout, stderr = process.communicate(timeout=DEADLINE_S)
    assert process.returncode is not None
    return Done(process.args, process.returncode, stdout, stderr)


def write_rows(path: Path, rows: int, **columns: Any) -> Path:
    """Parquet with id and text (a dull film number i), and further columns."""
    table = pa.table({"id": range(rows), "text": [f"a dull film number {i}" for i in range(rows)]} | columns)
    pq.write_table(table, path)
    return path


def parts(folder: Path) -> dict[str, bytes]:
    """The parts' bytes by name."""
    return {p.name: p.read_bytes() for p in sorted(folder.glob("part-*"))}
