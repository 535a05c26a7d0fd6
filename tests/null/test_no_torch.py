"""Importing, helping and a whole null run load neither torch nor transformers."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.null.runs import rows_of

WATCHED = (
    "print(sorted({'torch', 'transformers', 'onnxruntime', 'openvino', 'ray'} & set(sys.modules)), file=sys.stderr)"
)
IMPORT = f"import sys, packhorse; dir(packhorse); {WATCHED}"
COMMAND = f"""
import sys
from packhorse.__main__ import main
try:
    main()
finally:
    {WATCHED}
"""


def program(source: str, *arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-c", source, *arguments], capture_output=True, text=True, check=False)


@pytest.mark.parametrize(("source", "arguments"), [(IMPORT, []), (COMMAND, ["--help"]), (COMMAND, ["run", "--help"])])
def test_importing_and_helping_load_no_framework(source: str, arguments: list[str]) -> None:
    done = program(source, *arguments)
    assert (done.returncode, done.stderr) == (0, "[]\n")


def test_a_whole_run_from_the_command_line_loads_no_framework(null_model: Path, tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text('{"text": "good film"}\n{"text": null}\n')
    out = tmp_path / "out.jsonl"
    done = program(COMMAND, "run", str(null_model), str(tmp_path / "in.jsonl"), "-o", str(out), "--backend", "null")
    assert done.returncode == 0 and done.stderr.endswith("[]\n")
    assert "finished" in done.stdout
    assert [row["text"] for row in rows_of(out)] == ["good film", None]
    assert program(COMMAND, "verify", str(out)).stdout.startswith(f"{out}: good. 2 rows in 1 shards")
