"""Re-checks an output against its own records, byte for byte."""

from __future__ import annotations

from dataclasses import dataclass

from packhorse.errors import DamagedError, UsageError
from packhorse.outputs.manifest import STATE, RunFolder
from packhorse.outputs.mirrored import MirroredFolder
from packhorse.outputs.records import Commit
from packhorse.outputs.retries import Retries
from packhorse.outputs.stores import Store, open_store


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
    store = open_store(output)
    folder = RunFolder(output, is_file=not store.is_folder(store.full(output)), store=store)
    if not folder.exists:
        raise UsageError(f"{output}: no {STATE}/manifest.json belongs to it, so there is nothing to verify against")
    manifest = folder.manifest()
    if manifest.get("settings", {}).get("mirror"):
        folder = MirroredFolder(output, is_file=False, store=store)
    commits, torn = Retries(folder).seen(folder.commits())
    is_finished = bool(manifest.get("finished"))
    problems = _record_problems(folder, commits, is_finished) + torn
    if isinstance(folder, MirroredFolder):
        problems += folder.record_problems(manifest)
    files = folder.answering(manifest, commits)
    if is_finished and folder.file is None:
        problems += _strangers(folder, set(files))
    for path, file in files.items():
        problems += _file_problems(store, path, file.num_bytes, file.sha256)
    num_bytes = sum(file.num_bytes for file in files.values())
    rows = sum(c.shard.num_rows for c in commits)
    if is_finished and manifest["rows"] != rows:
        problems.append(f"{folder.state}/shards: records of {rows} rows, not of {manifest['rows']}")
    if problems:
        raise DamagedError(f"{output} is not as it was committed:\n" + "\n".join(f"  {p}" for p in problems))
    return Verification(output, len(commits), rows, num_bytes, is_finished)


def _record_problems(folder: RunFolder, commits: list[Commit], is_finished: bool) -> list[str]:
    """A gap is none in a run that was stopped while it committed several shards at the same time: see committing.py."""
    problems, row = [], 0
    for commit in commits:
        if commit.shard.first_row != row:
            problems.append(f"shard {commit.shard.index}: begins at row {commit.shard.first_row}, not at {row}")
        row = commit.shard.first_row + commit.shard.num_rows
    may_have_gap = not is_finished and folder.store.commits_at_once > 1
    if not may_have_gap and len(folder.record_paths()) != len(commits):
        problems.append(f"{folder.state}/shards: record {len(commits):06d}.json is missing, later ones are there")
    return problems


def _file_problems(store: Store, path: str, num_bytes: int, sha256: str) -> list[str]:
    size = store.size(path)
    if size is None:
        return [f"{path}: missing"]
    if size != num_bytes:
        return [f"{path}: {size} bytes, {num_bytes} were committed"]
    return [] if store.sha256(path) == sha256 else [f"{path}: content differs (sha256)"]


def _strangers(folder: RunFolder, known: set[str]) -> list[str]:
    return [f"{path}: no record knows this part" for path in folder.part_paths() if path not in known]
