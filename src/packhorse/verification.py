"""Re-checks an output against its own records, byte for byte."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from packhorse.disk import sha256_of
from packhorse.errors import DamagedError, UsageError
from packhorse.manifest import STATE, Commit, RunFolder


@dataclass(frozen=True, slots=True)
class Verification:
    """What was found good."""

    output: str
    shards: int
    rows: int
    num_bytes: int
    is_finished: bool


def verify_output(output: str) -> Verification:
    """Raises DamagedError listing what is missing or not as committed, UsageError where no run wrote the output."""
    folder = RunFolder(output, is_file=not Path(output).is_dir())
    if not folder.exists:
        raise UsageError(f"{output}: no {STATE}/manifest.json belongs to it, so there is nothing to verify against")
    manifest = folder.manifest()
    commits = folder.commits()
    is_finished = bool(manifest.get("finished"))
    problems = _record_problems(folder, commits)
    if folder.file is not None and is_finished:
        problems += _file_problems(folder.file, manifest["bytes"], manifest["sha256"])
        num_bytes = manifest["bytes"]
    else:
        for commit in commits:
            problems += _file_problems(folder.root / commit.part, commit.num_bytes, commit.sha256)
        problems += _strangers(folder, commits) if is_finished else []
        num_bytes = sum(c.num_bytes for c in commits)
    rows = sum(c.shard.num_rows for c in commits)
    if is_finished and manifest["rows"] != rows:
        problems.append(f"{folder.state}/shards: records of {rows} rows, not of {manifest['rows']}")
    if problems:
        raise DamagedError(f"{output} is not as it was committed:\n" + "\n".join(f"  {p}" for p in problems))
    return Verification(output, len(commits), rows, num_bytes, is_finished)


def _record_problems(folder: RunFolder, commits: list[Commit]) -> list[str]:
    problems, row = [], 0
    for commit in commits:
        if commit.shard.first_row != row:
            problems.append(f"shard {commit.shard.index}: begins at row {commit.shard.first_row}, not at {row}")
        row = commit.shard.first_row + commit.shard.num_rows
    records = sorted((folder.state / "shards").glob("[0-9]*.json"))
    if len(records) != len(commits):
        problems.append(f"{folder.state}/shards: record {len(commits):06d}.json is missing, later ones are there")
    return problems


def _file_problems(path: Path, num_bytes: int, sha256: str) -> list[str]:
    if not path.is_file():
        return [f"{path}: missing"]
    if path.stat().st_size != num_bytes:
        return [f"{path}: {path.stat().st_size} bytes, {num_bytes} were committed"]
    return [] if sha256_of(path) == sha256 else [f"{path}: content differs (sha256)"]


def _strangers(folder: RunFolder, commits: list[Commit]) -> list[str]:
    known = {c.part for c in commits}
    return [f"{p}: no record knows this part" for p in sorted(folder.root.glob("part-*")) if p.name not in known]
