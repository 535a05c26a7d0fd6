"""An output in an object store, through fsspec: objects are put whole, nothing is renamed."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from io import BufferedReader
from pathlib import Path
from typing import Any, TypeVar, cast

from packhorse.errors import OutputError, UsageError
from packhorse.files import open_file
from packhorse.outputs.disk import Disk
from packhorse.outputs.stores.lease import Lease, Timing
from packhorse.outputs.stores.puts import S3Puts, conditional_puts
from packhorse.remote import GOES_ON, PACKAGES, canonical, explained, filesystem, network_errors, notes_on, protocol_of

T = TypeVar("T")
# Where an object appears as a whole or not at all. Not so with sftp, smb or webhdfs, and each put to hf is a commit.
WHOLE_PUTS = ("s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "oss", "memory")
REQUESTS = 16  # at once
COMMITS = 8  # at once: 32 a second where an answer takes 125 ms, and a commit is two puts
MANY = 1_000  # objects whose sizes are looked up in listings
PIECES = 2  # of 50 MiB, of a large part at once; s3fs holds ten, and a put of 640 MiB took 1 GiB of memory


class ObjectStore:
    """A Store. A part is written on a disk first, in a folder of the system's for temporary files."""

    commits_at_once = COMMITS

    def __init__(
        self, output: str, timing: Timing | None = None, disk: Disk | None = None, fs: Any | None = None
    ) -> None:
        """fs: an fsspec file system; default the one that the address names.

        Raises UsageError where the protocol cannot be written to or its package is missing.
        """
        if protocol_of(output) in set(PACKAGES) - set(WHOLE_PUTS):
            legal = ", ".join(f"{protocol}://" for protocol in WHOLE_PUTS)
            raise UsageError(
                f"-o {output}: {protocol_of(output)}:// can only be read; write to a folder here, or to {legal}"
            )
        self._fs: Any = fs or filesystem(output)[0]
        self._timing, self._disk = timing or Timing(), disk or Disk()
        self._puts = conditional_puts(self._fs)
        self._limits = {"max_concurrency": PIECES} if isinstance(self._puts, S3Puts) else {}
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self.notes = notes_on(output)
        if not self._puts.is_atomic:
            self.notes.append(
                f"{protocol_of(output)}:// here cannot create an object only where there is none: two runs that begin "
                "within the same seconds could both work on this output"
            )

    def full(self, output: str) -> str:
        return canonical(output)

    def resolved(self, path: str) -> str:
        return path

    def is_folder(self, path: str) -> bool:
        return self._info(path).get("type") == "directory"

    def names(self, folder: str) -> list[str]:
        with explained(folder, "cannot be listed", OutputError):
            try:
                found = self._fs.ls(folder, detail=False)
            except FileNotFoundError:
                return []
        above = self._fs._strip_protocol(folder).rstrip("/") + "/"
        return sorted({name.rstrip("/").removeprefix(above) for name in found if name.rstrip("/") + "/" != above})

    def size(self, path: str) -> int | None:
        about = self._info(path)
        return int(about["size"]) if about.get("type") == "file" else None

    def _info(self, path: str) -> dict[str, Any]:
        with explained(path, "cannot be read", OutputError):
            try:
                return dict(self._fs.info(path))
            except FileNotFoundError:
                return {}

    def read(self, path: str) -> bytes:
        try:
            return bytes(self._fs.cat_file(path))
        except FileNotFoundError:
            raise
        except network_errors():
            with explained(path, "cannot be read", OutputError):
                raise

    def sizes(self, paths: Sequence[str]) -> list[int | None]:
        """Of many from listings of their folders: one answer there tells of a thousand objects."""
        if len(paths) < MANY:
            return self._each(self.size, paths)
        found: dict[str, int] = {}
        for folder in {path.rpartition("/")[0] for path in paths}:
            found |= self._sizes_in(folder)
        return [found.get(path) for path in paths]

    def _sizes_in(self, folder: str) -> dict[str, int]:
        """Of the objects directly in it, by their full paths."""
        above = self._fs._strip_protocol(folder).rstrip("/") + "/"
        with explained(folder, "cannot be listed", OutputError):
            try:
                listed = self._fs.ls(folder, detail=True)
            except FileNotFoundError:
                return {}
        files = ((entry["name"].removeprefix(above), entry) for entry in listed if entry["type"] == "file")
        return {f"{folder}/{name}": int(entry["size"]) for name, entry in files}

    def read_all(self, paths: Sequence[str]) -> list[bytes]:
        return self._each(self.read, paths)

    def _each(self, ask: Callable[[str], T], paths: Sequence[str]) -> list[T]:
        """Many requests at once: a job can have thousands of records, and each answer takes 10 to 50 ms."""
        with ThreadPoolExecutor(REQUESTS) as pool:
            return list(pool.map(ask, paths))

    def sha256(self, path: str) -> str:
        with open_file(path) as file:
            return hashlib.file_digest(cast(BufferedReader, file), "sha256").hexdigest()

    def write(self, path: str, data: bytes) -> None:
        with explained(path, "cannot be written", OutputError, GOES_ON):
            self._fs.pipe_file(path, data)

    def temporary(self, path: str) -> Path:
        if self._folder is None:
            self._folder = tempfile.TemporaryDirectory(prefix="packhorse-")
        return Path(self._folder.name) / path.rpartition("/")[2]

    def publish(self, temporary: Path, path: str) -> None:
        with explained(path, "cannot be written", OutputError, GOES_ON):
            self._fs.put_file(str(temporary), path, **self._limits)
        temporary.unlink()

    def delete(self, paths: Sequence[str]) -> None:
        self._each(self._delete, paths)

    def _delete(self, path: str) -> None:
        with explained(path, "cannot be deleted", OutputError), suppress(FileNotFoundError):
            self._fs.rm_file(path)

    @contextmanager
    def on_disk(self, paths: Sequence[str]) -> Iterator[list[str]]:
        """Downloaded, and deleted afterwards."""
        here = [self.temporary(f"part-{i}-{path.rpartition('/')[2]}") for i, path in enumerate(paths)]
        try:
            for path, file in zip(paths, here, strict=True):
                with explained(path, "cannot be read", OutputError, GOES_ON):
                    self._fs.get_file(path, str(file))
            yield [str(file) for file in here]
        finally:
            for file in here:
                file.unlink(missing_ok=True)

    def check_room(self, path: str, num_bytes: int) -> None:
        """The parts, downloaded, and the file that they make lie on the disk together."""
        self._disk.check_room(self.temporary(path).parent, 2 * num_bytes)

    def lock(self, path: str, say: Callable[[str], None], pause: Callable[[float], None]) -> Lease:
        with explained(path, "cannot be written", UsageError):
            return Lease(self._puts, path, self._timing, say, pause)

    def close(self) -> None:
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None
