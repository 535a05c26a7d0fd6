"""An output on a disk: files become final by a rename, and flock tells who works."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from packhorse.errors import LockedError, UsageError
from packhorse.outputs.disk import Disk, sha256_of


class LocalStore:
    """A Store over a Disk, whose steps a test can stop."""

    commits_at_once = 1

    def __init__(self, disk: Disk | None = None) -> None:
        self._disk = disk or Disk()
        self.notes: list[str] = []

    def full(self, output: str) -> str:
        return str(Path(output).absolute())

    def resolved(self, path: str) -> str:
        return str(Path(path).resolve())

    def is_folder(self, path: str) -> bool:
        return Path(path).is_dir()

    def names(self, folder: str) -> list[str]:
        return sorted(p.name for p in Path(folder).iterdir()) if Path(folder).is_dir() else []

    def size(self, path: str) -> int | None:
        return Path(path).stat().st_size if Path(path).is_file() else None

    def read(self, path: str) -> bytes:
        return Path(path).read_bytes()

    def sizes(self, paths: Sequence[str]) -> list[int | None]:
        return [self.size(path) for path in paths]

    def read_all(self, paths: Sequence[str]) -> list[bytes]:
        return [self.read(path) for path in paths]

    def sha256(self, path: str) -> str:
        return sha256_of(Path(path))

    def write(self, path: str, data: bytes) -> None:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        self._disk.write_atomic(Path(path), data)

    def temporary(self, path: str) -> Path:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        return Path(path)

    def publish(self, temporary: Path, path: str) -> None:
        self._make_folder(Path(path).parent)
        self._disk.publish(temporary, Path(path))

    def _make_folder(self, folder: Path) -> None:
        """Its name is on the disk before a file in it is."""
        missing = [above for above in (folder, *folder.parents) if not above.exists()]
        folder.mkdir(parents=True, exist_ok=True)
        for made in reversed(missing):
            self._disk.fsync(made.parent)

    def delete(self, paths: Sequence[str]) -> None:
        for path in paths:
            Path(path).unlink(missing_ok=True)

    @contextmanager
    def on_disk(self, paths: Sequence[str]) -> Iterator[list[str]]:
        yield list(paths)

    def check_room(self, path: str, num_bytes: int) -> None:
        self._disk.check_room(Path(path).parent, num_bytes)

    def lock(self, path: str, say: Callable[[str], None], pause: Callable[[float], None]) -> FileLock:
        return FileLock(Path(path))

    def close(self) -> None: ...


class FileLock:
    """flock on a file; the death of its holder frees it."""

    def __init__(self, path: Path) -> None:
        """Raises LockedError that names the holder, UsageError where nothing can be written there."""
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = _locked(path)
        except OSError as error:
            raise UsageError(f"{path.parent.parent}: cannot be written: {error}; choose another output") from error
        self._file.truncate(0)
        self._file.write(f"process {os.getpid()} on {socket.gethostname()}")
        self._file.flush()

    def check(self) -> None: ...

    def release(self) -> None:
        self._file.truncate(0)
        self._file.close()


def _locked(path: Path) -> IO[str]:
    import fcntl

    file = path.open("a+", encoding="utf-8")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        holder = file.read().strip() or "another process"
        file.close()
        raise LockedError(f"{path.parent.parent}: {holder} is working on this output; wait for it or stop it") from None
    return file
