"""The run folder: what was asked, what was decided, which shards are committed. Nothing else knows its layout.

    out/                        -o out/                    -o x.parquet: all of it in x.parquet.packhorse/
      part-000000.parquet       final as soon as visible
      _part-000000.npy          with npy: the part's embeddings; readers of Parquet pass over such a name
      _packhorse/
        manifest.json           fingerprints, settings, plan, budgets; replaced as a whole
        shards/000000.json      one a commit, written after its part
        retry/000000.json       while a part is replaced by --retry-errors: see retries.py
        report.json, report.html
        lock                    held while a run works; says who holds it

manifest.json: {"format": 1, "settings", "input", "model", "plan", "budgets": [[first shard, tokens, rows]], "finished",
"appended_at" (numbers of the input files with which those begin that --append added), "bytes", "sha256" (of a one-file
output), "beside" (where an output, as x.npy, is more than one file)}. --mirror: see mirrored.py.
Where all of it lies, on a disk or in an object store, is the store's business.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from packhorse.data import Shard
from packhorse.errors import DamagedError, RefusedError
from packhorse.outputs.bookkeeping import RECORDS, Bookkeeping
from packhorse.outputs.disk import sha256_of
from packhorse.outputs.records import Commit, FileRecord, sealed, unsealed
from packhorse.outputs.stores import Lock, Store, open_store

FORMAT = 1
STATE = "_packhorse"
PART = re.compile(r"part-\d{6,}\.(parquet|jsonl|csv)|_part-\d{6,}\.npy")

ROOM_FACTOR = 1.05  # one file has about the bytes of its parts: each part stays a row group of a Parquet file

Files = Callable[[str], Sequence[str]]
Write = Callable[[list[str]], None]  # a part, to the paths of its files
Assemble = Callable[[list[list[str]], list[str]], None]  # the files of each part, in one

# The files of a part or of an output by name, in the writer's order: as written, and where they are meanwhile
Filed = tuple[dict[str, FileRecord], dict[str, Path]]


def _itself(name: str) -> tuple[str, ...]:
    return (name,)


class RunFolder(Bookkeeping):
    """An output and its bookkeeping. `file` is the one-file output, None for a folder of parts. `files` names all files
    that the writer makes of a part, or of an output, of a name: the name itself and what stands beside it."""

    def __init__(self, output: str, is_file: bool, store: Store | None = None, files: Files = _itself) -> None:
        self.store = store or open_store(output)
        path = self.store.full(output)
        self.file = path if is_file else None
        self._files = files
        folder, _, name = path.rpartition("/")
        self.wholes = [f"{folder}/{n}" for n in files(name)] if is_file else []  # `file` and what stands beside it
        self.root = path + ".packhorse" if is_file else path
        self.state = f"{self.root}/{STATE}"
        self._manifest_path = f"{self.state}/manifest.json"
        self._lock: Lock | None = None

    @property
    def places(self) -> list[str]:
        """Where it writes, as real paths."""
        return [self.store.resolved(path) for path in (self.root, *self.wholes)]

    @property
    def notes(self) -> list[str]:
        """What a user should know of the place that it writes to."""
        return self.store.notes

    # -- who may work in it

    def lock(self, say: Callable[[str], None] = lambda line: None, pause: Callable[[float], None] = time.sleep) -> None:
        """Raises LockedError, naming the holder, while another process works here. A dead holder's lock is void.

        say: is told where it takes long to see whether the holder is dead. pause: waits meanwhile, and may raise.
        """
        self._lock = self.store.lock(f"{self.state}/lock", say, pause)

    def unlock(self) -> None:
        if self._lock is not None:
            self._lock.release()
            self._lock = None
        self.store.close()

    def _check_lock(self) -> None:
        """Raises LockedError where another run took the output from this one."""
        if self._lock is not None:
            self._lock.check()

    # -- what it holds

    @property
    def exists(self) -> bool:
        return self.store.size(self._manifest_path) is not None

    def check_is_ours(self, overwrite: bool) -> None:
        """Raises RefusedError where the output holds what no run put there, and, unless told to overwrite, parts
        or a file without a manifest."""
        if self.file is not None and self.store.is_folder(self.file):
            raise RefusedError(f"{self.file} is a folder; for parts in it write {self.file}/, for a file another name")
        names, exists = self.store.names(self.root), self.exists
        foreign = [n for n in names if n != STATE and not PART.fullmatch(n) and not n.startswith(".")]
        if foreign and not exists:
            raise RefusedError(
                f"{self.root} holds {foreign[0]!r}, which is no output of packhorse; choose another folder"
            )
        if overwrite or exists:
            return
        there = [path for path in self.wholes if self.store.size(path) is not None]
        if there:
            raise RefusedError(
                f"{there[0]} exists and belongs to no run that can be continued; --overwrite replaces it"
            )
        if any(PART.fullmatch(n) for n in names):
            raise RefusedError(
                f"{self.root} holds parts but no manifest, so it cannot be continued; --overwrite replaces them"
            )

    def clear(self) -> None:
        """Deletes parts, bookkeeping and a one-file output; touches nothing else."""
        self._check_lock()
        mirrored = self.intact_mirrored_files() if self.file is None else ()
        self.store.delete([self._manifest_path])  # first: what is left is then no finished run
        for folder in (self.root, f"{self.state}/parts"):
            self.store.delete([f"{folder}/{name}" for name in self.store.names(folder) if PART.fullmatch(name)])
        self.store.delete([*self.wholes, *(f"{self.root}/{file.name}" for m in mirrored for file in m.files)])
        for kind in RECORDS:
            self.store.delete(self.record_paths(kind))
        self.drop_report()

    def part_paths(self) -> list[str]:
        """Of all parts that are there, committed or not."""
        return [f"{self.root}/{name}" for name in self.store.names(self.root) if PART.fullmatch(name)]

    def manifest(self) -> dict[str, Any]:
        """Raises DamagedError where it cannot be read, RefusedError for a newer format."""
        try:
            manifest = unsealed(self.store.read(self._manifest_path))
        except (OSError, ValueError) as error:
            raise DamagedError(f"{self._manifest_path}: cannot be read: {error}") from error
        if manifest.get("format") != FORMAT:
            raise RefusedError(
                f"{self._manifest_path}: format {manifest.get('format')}; this version reads format {FORMAT}"
            )
        return manifest

    def write_manifest(self, manifest: dict[str, Any]) -> None:
        """Raises LockedError where another run took the output from this one."""
        self._check_lock()
        self.store.write(self._manifest_path, sealed({"format": FORMAT} | manifest))

    def part(self, file: FileRecord) -> str:
        """The full path of a file of a committed part."""
        return f"{self.root}/{file.name}"

    def whole(self, manifest: dict[str, Any]) -> dict[str, FileRecord]:
        """The files of a finished one-file output by their full paths."""
        folder, _, name = str(self.file).rpartition("/")
        beside = [FileRecord.from_dict(f) for f in manifest.get("beside", [])]
        return {f"{folder}/{f.name}": f for f in (FileRecord(name, manifest["bytes"], manifest["sha256"]), *beside)}

    def check_parts(self, commits: Sequence[Commit]) -> None:
        """Raises DamagedError where a committed part is missing or has another size."""
        files = [file for commit in commits for file in commit.files]
        for file, size in zip(files, self.store.sizes([self.part(f) for f in files]), strict=True):
            if size != file.num_bytes:
                seen = "is missing" if size is None else f"has {size} bytes"
                raise DamagedError(
                    f"{self.part(file)} {seen}, {file.num_bytes} bytes were committed; --overwrite starts anew"
                )

    def check_finished(self, manifest: dict[str, Any]) -> None:
        """Raises DamagedError where what a finished run left is gone or has another size."""
        commits = self.commits()
        if self.file is None:
            self.check_parts(commits)
            return
        for path, file in self.whole(manifest).items():
            if self.store.size(path) != file.num_bytes:
                raise DamagedError(f"{path} is not the file that the finished run left; --overwrite starts anew")
        self._drop_parts(commits)

    def shown(self, commits: Sequence[Commit]) -> list[str]:
        """Names of what a user sees of it."""
        return [commit.part for commit in commits]

    def answering(self, manifest: dict[str, Any], commits: Sequence[Commit]) -> dict[str, FileRecord]:
        """The files that it answers for, by their full paths."""
        if self.file is not None and manifest.get("finished"):
            return self.whole(manifest)
        return {self.part(file): file for commit in commits for file in commit.files}

    def _drop_parts(self, commits: Sequence[Commit]) -> None:
        """The parts of a one-file output, once it is there."""
        self.store.delete([self.part(file) for commit in commits for file in commit.files])

    # -- how a shard becomes final

    def commit(
        self, shard: Shard, extension: str, write: Write, counters: dict[str, Any], error_rows: Sequence[int] = ()
    ) -> Commit:
        """Part first, record after it: a part without a record is computed again, to the same bytes.

        Raises LockedError where another run took the output from this one.
        """
        commit, temporaries = self.written(shard, extension, write, counters, error_rows)
        self.make_final(commit, temporaries)
        return commit

    def written(
        self, shard: Shard, extension: str, write: Write, counters: dict[str, Any], error_rows: Sequence[int]
    ) -> tuple[Commit, Mapping[str, Path]]:
        """A part that is not visible yet: its record, and where its files are by name."""
        name = f"part-{shard.index:06d}{extension}"
        files, temporaries = self._filed(name, write)
        named = files.pop(name)
        return Commit(shard, *named, counters, tuple(files.values()), tuple(error_rows)), temporaries

    def make_final(self, commit: Commit, temporaries: Mapping[str, Path]) -> None:
        """The part, and then its record. Of different shards at the same time too. Raises LockedError."""
        self.publish(commit, temporaries)
        self._check_lock()  # a large part takes its time
        self.write_record(commit)

    def drop_records_after(self, commits: Sequence[Commit]) -> None:
        """Those behind a gap, before their shards are computed again: under another budget their parts would have other
        bytes, and a part is not to be replaced while its record stands."""
        self._check_lock()
        self.store.delete(self.record_paths()[len(commits) :])

    def publish(self, commit: Commit, temporaries: Mapping[str, Path]) -> None:
        self._check_lock()
        for file in commit.files:
            self.store.publish(temporaries[file.name], self.part(file))

    def finish(self, rows: int, commits: list[Commit], assemble: Assemble) -> str | None:
        """Marks the run as finished; a one-file output appears here as a whole. Returns its sha256.

        Raises OutputError where it has no room to be put together, DamagedError where a part is not as committed.
        """
        manifest = self.manifest()
        if self.file is not None:
            manifest |= self._assemble(self.file, commits, assemble)
        self.write_manifest(manifest | {"finished": True, "rows": rows})
        if self.file is not None:
            self._drop_parts(commits)
        return manifest.get("sha256")

    def _assemble(self, path: str, commits: Sequence[Commit], assemble: Assemble) -> dict[str, Any]:
        """The one file of all parts, and what stands beside it; sha256 and bytes of each."""
        folder, _, name = path.rpartition("/")
        found, temporaries = self._put_together(name, commits, assemble)
        self._check_lock()
        beside = [file for n, file in found.items() if n != name]
        for file in (*beside, found[name]):
            self.store.publish(temporaries[file.name], f"{folder}/{file.name}")
        whole = {"sha256": found[name].sha256, "bytes": found[name].num_bytes}
        return whole | ({"beside": [file.to_dict() for file in beside]} if beside else {})

    def _put_together(self, name: str, commits: Sequence[Commit], assemble: Assemble) -> Filed:
        """One output of all parts, not visible yet."""
        files = [file for commit in commits for file in commit.files]
        needed = int(ROOM_FACTOR * sum(file.num_bytes for file in files))
        self.store.check_room(f"{self.state}/{name}.tmp", needed)

        def write(paths: list[str]) -> None:
            with self.store.on_disk([self.part(file) for file in files]) as parts:
                for file, part in zip(files, parts, strict=True):
                    if sha256_of(part) != file.sha256:
                        raise DamagedError(f"{self.part(file)} is not as committed; --overwrite starts anew")
                rest = iter(parts)
                assemble([[next(rest) for _ in c.files] for c in commits], paths)

        return self._filed(name, write)

    def _filed(self, name: str, write: Write) -> Filed:
        temporaries = {n: self.store.temporary(f"{self.state}/{n}.tmp") for n in self._files(name)}
        write([str(path) for path in temporaries.values()])
        return {n: FileRecord(n, t.stat().st_size, sha256_of(t)) for n, t in temporaries.items()}, temporaries
