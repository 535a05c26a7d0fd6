"""Puts that succeed only where the object is as expected: what a lock in an object store is made of."""

from __future__ import annotations

import errno
from typing import Any, NamedTuple, Protocol

from packhorse.remote import answer_code, is_in_pyarrow

REFUSED = ("PreconditionFailed", "ConditionalRequestConflict", "412", "409")
READS = 10  # of an object that is replaced meanwhile
CREATES = ("memory", "gs", "gcs", "abfs", "az")  # pipe_file(mode="create") of their fsspec packages is exclusive


class Version(NamedTuple):
    """An object as it was read: its bytes, and what tells whether it is still the same."""

    data: bytes
    mark: Any


class Puts(Protocol):
    is_atomic: bool  # whether of two that create or replace at the same time one is told that it lost

    def read(self, path: str) -> Version | None: ...  # None where there is none
    def create(self, path: str, data: bytes) -> Version | None: ...  # None where there is one already
    def replace(self, path: str, data: bytes, old: Version) -> Version | None: ...  # None where it is not the old one
    def delete(self, path: str) -> None: ...


def conditional_puts(fs: Any) -> Puts:
    """By what the file system can do."""
    protocols = (fs.protocol,) if isinstance(fs.protocol, str) else tuple(fs.protocol)
    if is_in_pyarrow(fs):
        return PlainPuts(fs, creates=False)
    if "s3" in protocols:
        return S3Puts(fs)
    return PlainPuts(fs, creates=any(p in CREATES for p in protocols))


class S3Puts:
    """s3fs, which hands IfNoneMatch and IfMatch on to PutObject."""

    is_atomic = True

    def __init__(self, fs: Any) -> None:
        self._fs = fs

    def read(self, path: str) -> Version | None:
        for left in reversed(range(READS)):
            try:
                with self._fs.open(path, "rb") as file:  # it reads with IfMatch: bytes and etag are of one version
                    return Version(file.read(), file.details["ETag"])
            except FileNotFoundError:
                return None
            except OSError as error:
                if error.errno != errno.EBUSY or not left:  # s3fs: replaced between its asking and its reading
                    raise
        raise AssertionError("the last read returns or raises")

    def create(self, path: str, data: bytes) -> Version | None:
        return self._put(path, data, IfNoneMatch="*")

    def replace(self, path: str, data: bytes, old: Version) -> Version | None:
        return self._put(path, data, IfMatch=old.mark)

    def _put(self, path: str, data: bytes, **condition: str) -> Version | None:
        try:
            return Version(data, self._fs.pipe_file(path, data, **condition)["ETag"])
        except OSError as error:
            if answer_code(error) in REFUSED or (answer_code(error) == "NoSuchKey" and "IfMatch" in condition):
                return None
            raise

    def delete(self, path: str) -> None:
        self._fs.rm_file(path)


class PlainPuts:
    """Other file systems. Replacing is reading, comparing and writing: two that do so at once are told apart by reading
    again later, which the lease does where is_atomic is false."""

    is_atomic = False

    def __init__(self, fs: Any, creates: bool) -> None:
        self._fs, self._creates = fs, creates

    def read(self, path: str) -> Version | None:
        try:
            data = bytes(self._fs.cat_file(path))
        except FileNotFoundError:
            return None
        return Version(data, data)

    def create(self, path: str, data: bytes) -> Version | None:
        if not self._creates and self.read(path) is not None:
            return None
        try:
            self._fs.pipe_file(path, data, **({"mode": "create"} if self._creates else {}))
        except FileExistsError:
            return None
        return Version(data, data)

    def replace(self, path: str, data: bytes, old: Version) -> Version | None:
        now = self.read(path)
        if now is None or now.mark != old.mark:
            return None
        self._fs.pipe_file(path, data)
        return Version(data, data)

    def delete(self, path: str) -> None:
        self._fs.rm_file(path)
