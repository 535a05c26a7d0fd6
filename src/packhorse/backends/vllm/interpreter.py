"""Which Python has vLLM, and what its vLLM is."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from packhorse.backends.vllm import server
from packhorse.errors import UsageError

VARIABLE = "PACKHORSE_VLLM_PYTHON"
SERVER = Path(server.__file__)
SET_UP = (
    "vLLM has versions of torch and transformers of its own, so give it an environment of its own:\n"
    "    python -m venv vllm-env && vllm-env/bin/pip install vllm\n"
    f"    export {VARIABLE}=vllm-env/bin/python"
)
PROBE_LIMIT_S = 300  # importing vLLM takes 10 s, and minutes where its files are read for the first time

# Without importing vllm: only its metadata is read. A build for processors may be a distribution of another name.
VERSIONS = """
import importlib.metadata as m, importlib.util as u, json, sys
found = {"python": "%d.%d.%d" % sys.version_info[:3]} if u.find_spec("vllm") else {}
if found:
    names = {"vllm": (m.packages_distributions().get("vllm") or ["vllm"])[0]}
    for name in ("vllm", "torch", "transformers"):
        try:
            found[name] = m.version(names.get(name, name))
        except m.PackageNotFoundError:
            pass
print(json.dumps(found))
"""


def find_python() -> str:
    """PACKHORSE_VLLM_PYTHON, else this interpreter where it has vllm. Raises UsageError where there is none."""
    asked = os.environ.get(VARIABLE)
    if asked:
        return str(Path(asked).absolute())  # not resolved: a venv's python is a link, and is known by its place
    if find_spec("vllm") is None:
        raise UsageError(f"--backend vllm: there is no vllm here. {SET_UP}")
    return sys.executable


def versions(python: str) -> dict[str, str]:
    """Of Python, vllm, torch and transformers, as far as they tell. Raises UsageError where there is no vllm."""
    lines = _run(python, [python, "-c", VERSIONS]).decode().strip().splitlines()
    found: dict[str, str] = json.loads(lines[-1]) if lines else {}
    if not found:
        raise UsageError(f"--backend vllm: {python} has no vllm. {SET_UP}")
    return found


def probe(python: str) -> dict[str, Any]:
    """device: the kind that its vllm was built for (cuda, cpu, xpu, ...), devices: how many are here.

    Raises UsageError where vllm cannot be imported."""
    versions(python)
    frame = server.read_frame(io.BytesIO(_run(python, [python, str(SERVER), "probe"])).read)
    if frame is None:
        raise UsageError(f"--backend vllm: {python} did not tell what its vllm was built for")
    found: dict[str, Any] = frame[0]
    return found


def _run(python: str, command: list[str]) -> bytes:
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, timeout=PROBE_LIMIT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UsageError(f"{VARIABLE}={python}: cannot be run: {error}. {SET_UP}") from error
    if done.returncode:
        lines = done.stderr.decode(errors="replace").strip().splitlines()
        raise UsageError(f"--backend vllm: {python} cannot import vllm: {lines[-1] if lines else 'it says nothing'}")
    return done.stdout
