"""Records and reports as a run folder keeps them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from packhorse.errors import DamagedError
from packhorse.outputs.records import Commit, MirroredFile, commit_of, mirrored_file_of
from packhorse.outputs.stores import Store

RECORD = re.compile(r"\d{6,}\.json")
RECORDS = ("shards", "retry", "files")  # in the order in which they are deleted
READ_AT_ONCE = 4_096  # records, of about 1 KB


class Bookkeeping:
    """state: the folder that holds all of it, in that store."""

    store: Store
    state: str

    def record_paths(self, kind: str = "shards") -> list[str]:
        """Of all records of a kind that are there, also of those after a gap."""
        folder = f"{self.state}/{kind}"
        return [f"{folder}/{name}" for name in self.store.names(folder) if RECORD.fullmatch(name)]

    def commits(self) -> list[Commit]:
        """The committed shards from the first on, without a gap. Raises DamagedError naming a record that is broken."""
        found: list[Commit] = []
        for path, record in self._records():
            commit = commit_of(path, record)
            if commit.shard.index != len(found):
                break
            found.append(commit)
        return found

    def _records(self) -> Iterator[tuple[str, bytes]]:
        """Those of shards by path; only some of them in memory at once as they stand."""
        paths = self.record_paths()
        for first in range(0, len(paths), READ_AT_ONCE):
            some = paths[first : first + READ_AT_ONCE]
            yield from zip(some, self.store.read_all(some), strict=True)

    def intact_mirrored_files(self) -> list[MirroredFile]:
        """Those of --mirror's outputs whose records can be read."""
        found = []
        for path in self.record_paths("files"):
            with suppress(DamagedError):
                found.append(mirrored_file_of(path, self.store.read(path)))
        return found

    def mirrored_files(self) -> dict[int, MirroredFile]:
        """What --mirror wrote, or was about to, by the input file's number. Raises DamagedError."""
        paths = self.record_paths("files")
        found = [mirrored_file_of(*each) for each in zip(paths, self.store.read_all(paths), strict=True)]
        return {file.index: file for file in found}

    def write_record(self, commit: Commit) -> None:
        self.store.write(f"{self.state}/shards/{commit.shard.index:06d}.json", commit.to_json())

    @property
    def html_path(self) -> str:
        return f"{self.state}/report.html"

    @property
    def _report_path(self) -> str:
        return f"{self.state}/report.json"

    @property
    def has_report(self) -> bool:
        """Whether both files of it are there."""
        return all(self.store.size(path) is not None for path in (self._report_path, self.html_path))

    def report(self) -> dict[str, Any]:
        """report.json as it was written; empty where there is none. Raises DamagedError where it is no JSON."""
        try:
            report: dict[str, Any] = json.loads(self.store.read(self._report_path))
        except FileNotFoundError:
            return {}
        except ValueError as error:
            raise DamagedError(f"{self._report_path}: cannot be read: {error}; deleted, it is written anew") from error
        return report

    def drop_report(self) -> None:
        """Before an output that was finished is changed: it speaks of what was. The run that finishes writes it."""
        self.store.delete([self._report_path, self.html_path])

    def write_report(self, report: dict[str, Any], html: str) -> None:
        """report.json and the same as a page."""
        self.store.write(self._report_path, json.dumps(report, indent=1).encode())
        self.store.write(self.html_path, html.encode())
