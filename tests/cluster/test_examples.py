"""The files in examples/: their syntax, and that their commands have flags and settings that exist."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
SBATCH = re.compile(r"#SBATCH --[a-z-]+(=\S+)?")


def flags_of(command: str) -> set[str]:
    return {word.split("=")[0] for word in shlex.split(command) if re.match(r"--?[a-z]", word)}


def legal_flags() -> set[str]:
    import typer

    from packhorse.cli import app

    run: Any = typer.main.get_command(app).commands["run"]  # type: ignore[attr-defined]
    return {option for parameter in run.params for option in parameter.opts}


def test_kuberay_job() -> None:
    yaml = pytest.importorskip("yaml")
    job = yaml.safe_load((EXAMPLES / "kuberay-job.yaml").read_text())
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob") and job["metadata"]["name"]
    spec = job["spec"]
    words = shlex.split(spec["entrypoint"])
    assert words[:2] == ["packhorse", "run"] and flags_of(spec["entrypoint"]) <= legal_flags()
    cluster = spec["rayClusterSpec"]
    groups = cluster["workerGroupSpecs"]
    for group in [cluster["headGroupSpec"], *groups]:
        containers = group["template"]["spec"]["containers"]
        assert all(c["name"] and c["image"] and c["resources"]["limits"] for c in containers)
        assert isinstance(group["rayStartParams"], dict)
    assert all(isinstance(v, str) for v in cluster["headGroupSpec"]["rayStartParams"].values())
    (group,) = groups
    assert group["groupName"] and group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
    workers = int(words[words.index("--ray-workers") + 1])
    assert workers + spec["entrypointNumGpus"] == group["maxReplicas"]


def test_slurm_job() -> None:
    path = EXAMPLES / "slurm.sbatch"
    text = path.read_text()
    assert text.startswith("#!/bin/bash\n")
    bash = shutil.which("bash")
    assert bash is not None
    assert subprocess.run([bash, "-n", str(path)], capture_output=True, text=True).stderr == ""
    lines = text.splitlines()
    first_command = next(i for i, line in enumerate(lines) if line and not line.startswith("#"))
    directives = [line for line in lines if line.startswith("#SBATCH")]
    assert directives and all(SBATCH.fullmatch(line) for line in directives)
    assert all(lines.index(line) < first_command for line in directives)  # Slurm reads none after it
    given = {line.split()[1].split("=")[0] for line in directives}
    assert given >= {"--job-name", "--nodes", "--ntasks-per-node", "--gpus-per-node", "--cpus-per-task", "--time"}
    (command,) = re.findall(r"^packhorse run .*?&$", text, re.MULTILINE | re.DOTALL)
    flags = flags_of(command.replace("\\\n", " ").rstrip("&"))
    assert flags <= legal_flags() and "--ray" in flags
