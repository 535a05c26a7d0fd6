"""Parts whose rows in error were computed again, put in the place of the old ones so that a crash leaves no doubt.

    retry/000003.json   the shard's new record, written first: what the part is going to be
    part-000003.parquet replaced, file by file
    shards/000003.json  replaced
    retry/000003.json   deleted

Whoever finds a record in retry/ compares the part's files: all new, and the rest is done; all old, and nothing was; a
part of several files of which some are new is merged once more.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from packhorse.data import Shard
from packhorse.errors import DamagedError
from packhorse.outputs.disk import sha256_of
from packhorse.outputs.manifest import RunFolder
from packhorse.outputs.records import Commit, FileRecord, commit_of

Merge = Callable[[list[str], list[str]], None]  # the files of a part, and where those of the new one are written


class Retries:
    """Of one run folder; its lock is held by whoever changes it."""

    def __init__(self, folder: RunFolder) -> None:
        self._folder, self._store = folder, folder.store

    def pending(self) -> dict[int, Commit]:
        """What a run that was stopped was about to replace, by shard. Raises DamagedError."""
        found = (commit_of(path, self._store.read(path)) for path in self._folder.record_paths("retry"))
        return {commit.shard.index: commit for commit in found}

    def settle(self, commits: Sequence[Commit]) -> list[int]:
        """Ends what a run that was stopped had begun; the shards whose part is half old and half new."""
        torn = []
        for index, new in self.pending().items():
            is_new = self._is_new(_of_shard(commits, index), new)
            if is_new is None:
                torn.append(index)
                continue
            if is_new:
                self._folder.write_record(new)
            self._store.delete([self._path(new.shard)])
        return torn

    def seen(self, commits: Sequence[Commit]) -> tuple[list[Commit], list[str]]:
        """The records as settle() would leave them, and what is wrong; changes nothing."""
        seen, problems = list(commits), []
        for index, new in self.pending().items():
            is_new = self._is_new(_of_shard(commits, index), new)
            if is_new:
                seen[index] = new
            if is_new is None:
                problems.append(f"{self._folder.root}/{new.part}: half replaced; the same --retry-errors mends it")
        return seen, problems

    def replace(
        self, old: Commit, extension: str, merge: Merge, counters: dict[str, Any], error_rows: Sequence[int]
    ) -> Commit:
        """The part of a shard as `merge` makes it anew, and its record. Raises DamagedError where it is not as
        committed.

        merge: writes the new files, from the old ones. counters, error_rows: of the new record.
        """
        pending = self.pending().get(old.shard.index)
        legal = [old, pending] if pending else [old]
        with self._store.on_disk([self._folder.part(file) for file in old.files]) as paths:
            _check(old.files, paths, legal)
            new, temporaries = self._folder.written(
                old.shard, extension, lambda to: merge(paths, to), counters, error_rows
            )
        self._store.write(self._path(new.shard), new.to_json())
        self._folder.publish(new, temporaries)
        self._folder.write_record(new)
        self._store.delete([self._path(new.shard)])
        return new

    def _path(self, shard: Shard) -> str:
        return f"{self._folder.state}/retry/{shard.index:06d}.json"

    def _is_new(self, old: Commit, new: Commit) -> bool | None:
        """Whether the part is the new one; None where some of its files are old and some are new."""
        before = {file.name: file.sha256 for file in old.files}
        now = {file.name: self._sha256(file) for file in new.files}
        if all(now[file.name] == file.sha256 for file in new.files):
            return True
        return False if now == before or not any(now[f.name] == f.sha256 != before[f.name] for f in new.files) else None

    def _sha256(self, file: FileRecord) -> str | None:
        path = self._folder.part(file)
        return None if self._store.size(path) is None else self._store.sha256(path)


def _of_shard(commits: Sequence[Commit], index: int) -> Commit:
    if index >= len(commits):
        raise DamagedError(f"shard {index} was being replaced, and its record is missing; --overwrite starts anew")
    return commits[index]


def _check(files: Sequence[FileRecord], paths: Sequence[str], legal: Sequence[Commit]) -> None:
    """Raises DamagedError where a file is that of none of the records."""
    for file, path in zip(files, paths, strict=True):
        if sha256_of(path) not in [f.sha256 for commit in legal for f in commit.files if f.name == file.name]:
            raise DamagedError(f"{file.name} is not as committed; --overwrite starts anew")
