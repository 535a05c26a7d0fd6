"""Where an output lies: on a disk, or in an object store. A store knows bytes by path, and nothing of a run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

from packhorse.errors import UsageError
from packhorse.outputs.stores.local import LocalStore
from packhorse.remote import PACKAGES, is_remote


class Lock(Protocol):
    """Held while a run works in a folder."""

    def check(self) -> None:
        """Raises LockedError where another process has taken it meanwhile."""

    def release(self) -> None: ...


class Store(Protocol):
    """Paths are full: /data/out/part-000000.parquet, s3://bucket/out/part-000000.parquet. What is written or published
    under a path shows all of its bytes or none, also after a crash."""

    notes: list[str]  # what a user should know of it
    commits_at_once: int  # that it is given; a disk gains nothing from more than one

    def full(self, output: str) -> str: ...  # an output's address as a full path
    def resolved(self, path: str) -> str: ...  # without links
    def is_folder(self, path: str) -> bool: ...
    def names(self, folder: str) -> list[str]: ...  # of what lies directly in it, sorted; none where it is not there
    def size(self, path: str) -> int | None: ...  # bytes of a file, None where there is none
    def sizes(self, paths: Sequence[str]) -> list[int | None]: ...
    def read(self, path: str) -> bytes: ...  # raises FileNotFoundError
    def read_all(self, paths: Sequence[str]) -> list[bytes]: ...
    def sha256(self, path: str) -> str: ...
    def write(self, path: str, data: bytes) -> None: ...
    def temporary(self, path: str) -> Path: ...  # a place on a disk to write at, for what is published later
    def publish(self, temporary: Path, path: str) -> None: ...  # a written file becomes final
    def delete(self, paths: Sequence[str]) -> None: ...  # what is not there is no error
    def on_disk(self, paths: Sequence[str]) -> AbstractContextManager[list[str]]: ...  # files to read them from
    def check_room(self, path: str, num_bytes: int) -> None:
        """Raises OutputError where no file of so many bytes can be put together at temporary(path)."""

    def lock(self, path: str, say: Callable[[str], None], pause: Callable[[float], None]) -> Lock:
        """Raises LockedError that names the holder; say: is told why it takes long."""

    def close(self) -> None: ...  # temporary files go; the store can be used on


def open_store(output: str) -> Store:
    """The store that an output's address names. Raises UsageError where its package is not installed, and for an
    address that lost a slash: the job would go to a folder of that name."""
    if not is_remote(output):
        protocol, colon, rest = output.partition(":/")
        if colon and protocol in PACKAGES:
            raise UsageError(f"-o {output}: write {protocol}://{rest}, as a string: a pathlib.Path drops a slash")
        return LocalStore()
    from packhorse.outputs.stores.objects import ObjectStore

    return ObjectStore(output)
