"""The run folder of --mirror: an output file for each input file, whole as soon as visible.

out/a.parquet, out/sub/b.parquet    put together when the last shard of its input file is committed
out/_packhorse/parts/               parts of files that are not
out/_packhorse/files/000000.json    one an input file, written just before its output appears
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from packhorse.errors import DamagedError, RefusedError
from packhorse.outputs.manifest import PART, STATE, Assemble, RunFolder, Write
from packhorse.outputs.records import Commit, FileRecord, MirroredFile


class MirroredFolder(RunFolder):
    """Shards never span input files: the file of a shard is that of its start."""

    def part(self, file: FileRecord) -> str:
        return f"{self.state}/parts/{file.name}"

    def part_paths(self) -> list[str]:
        """Of all parts, none of which a reader of the folder sees."""
        folder = f"{self.state}/parts"
        return [f"{folder}/{name}" for name in self.store.names(folder) if PART.fullmatch(name)]

    def check_is_ours(self, overwrite: bool) -> None:
        """Raises RefusedError where the folder, or one in it, holds what no run put there."""
        if self.exists:
            return  # names that an input file needs are looked at one by one: begin()
        known = {file.name for mirrored in self.mirrored_files().values() for file in mirrored.files}
        there = [name for name in self._below(self.root) if not name.startswith(f"{STATE}/")]
        foreign = [name for name in there if name not in known]
        if foreign:
            raise RefusedError(f"{self.root} holds {foreign[0]!r}, which no run wrote; choose another folder")
        if there and not overwrite:
            raise RefusedError(
                f"{self.root} holds {there[0]!r} but no manifest, so it cannot be continued; --overwrite replaces it"
            )

    def _below(self, folder: str) -> list[str]:
        """Relative names of all files in a folder and those in it; without what begins with a dot."""
        found: list[str] = []
        for name in self.store.names(folder):
            path = f"{folder}/{name}"
            if name.startswith("."):
                continue
            if self.store.is_folder(path):
                found += [] if path == self.state else [f"{name}/{below}" for below in self._below(path)]
            else:
                found.append(name)
        return found

    # -- files that are done

    def done(self) -> dict[int, MirroredFile]:
        """The input files whose output is there. Raises DamagedError for one of another size than was recorded."""
        recorded = self.mirrored_files()
        wanted = {f"{self.root}/{file.name}": file for mirrored in recorded.values() for file in mirrored.files}
        sizes = dict(zip(wanted, self.store.sizes(list(wanted)), strict=True))
        for path, file in wanted.items():
            if sizes[path] not in (None, file.num_bytes):
                raise DamagedError(f"{path} is not the file that was written; --overwrite starts anew")
        gone = {wanted[path].name for path, size in sizes.items() if size is None}
        return {index: m for index, m in recorded.items() if not gone & {file.name for file in m.files}}

    def check_free(self, names: Sequence[str], done: dict[int, MirroredFile]) -> None:
        """Raises RefusedError where a file stands in the way of an output that is still to be written.

        names: the output of each input file.
        """
        recorded = {file.name for mirrored in self.mirrored_files().values() for file in mirrored.files}
        wanted = {made for i, name in enumerate(names) if i not in done for made in self._files(name)} - recorded
        for folder in sorted({made.rpartition("/")[0] for made in wanted}):
            there = self.store.names(f"{self.root}/{folder}".rstrip("/"))
            taken = [name for name in there if f"{folder}/{name}".lstrip("/") in wanted]
            if taken:
                path = f"{self.root}/{folder}".rstrip("/") + f"/{taken[0]}"
                raise RefusedError(f"{path} exists, and no run wrote it; move it away")

    def complete(
        self, index: int, name: str, commits: Sequence[Commit], assemble: Assemble, write_empty: Write
    ) -> None:
        """The output of an input file appears; its parts go. write_empty: where the file had no rows."""
        base = name.rpartition("/")[2]
        if commits:
            found, temporaries = self._put_together(base, commits, assemble)
        else:
            found, temporaries = self._filed(base, write_empty)
        folder = name[: -len(base)]
        files = tuple(file._replace(name=folder + file.name) for file in found.values())
        rows = sum(commit.shard.num_rows for commit in commits)
        self._check_lock()
        self.store.write(f"{self.state}/files/{index:06d}.json", MirroredFile(index, rows, files).to_json())
        for file in found.values():
            self.store.publish(temporaries[file.name], f"{self.root}/{folder}{file.name}")
        self._drop_parts(commits)

    # -- what is checked, and told

    def check_parts(self, commits: Sequence[Commit]) -> None:
        """Of the files that are not done; what is left of the others goes."""
        done = self.done()
        super().check_parts([c for c in commits if c.shard.start.file not in done])
        left = {self.part(file) for c in commits if c.shard.start.file in done for file in c.files}
        self.store.delete([path for path in self.part_paths() if path in left])

    def check_finished(self, manifest: dict[str, Any]) -> None:
        """Raises DamagedError where an output is gone or has another size."""
        done = self.done()
        for index, file in self.mirrored_files().items():
            if index not in done:
                raise DamagedError(f"{self.root}/{file.files[0].name} is missing; --overwrite starts anew")
        if len(done) != len(manifest["input"]):
            raise DamagedError(f"{self.state}/files: {len(done)} records, {len(manifest['input'])} files were read")
        self.check_parts(self.commits())

    def shown(self, commits: Sequence[Commit]) -> list[str]:
        return [file.name for mirrored in self.mirrored_files().values() for file in mirrored.files]

    def answering(self, manifest: dict[str, Any], commits: Sequence[Commit]) -> dict[str, FileRecord]:
        records, is_finished = self.mirrored_files(), bool(manifest.get("finished"))
        outputs = {i: {f"{self.root}/{f.name}": f for f in m.files} for i, m in records.items()}
        here = {i: o for i, o in outputs.items() if is_finished or all(self.store.size(p) is not None for p in o)}
        parts = {self.part(f): f for c in commits if c.shard.start.file not in here for f in c.files}
        return {path: file for files in here.values() for path, file in files.items()} | parts

    def record_problems(self, manifest: dict[str, Any]) -> list[str]:
        missing = len(manifest["input"]) - len(self.mirrored_files()) if manifest.get("finished") else 0
        return [f"{self.state}/files: the records of {missing} input files are missing"] if missing else []
