"""Files by address: a local path, or PROTOCOL://... . Who reads bytes of an input asks here, never a path itself.

Local paths need no package; what is remote goes through fsspec, imported where the first remote address is met.
"""

from __future__ import annotations

import glob
import io
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, cast

from packhorse.errors import InputError
from packhorse.redaction import redacted
from packhorse.remote import WEB, answer_code, canonical, explained, filesystem, network_errors, protocol_of
from packhorse.remote import is_remote as is_remote  # readers ask here

BLOCK_BYTES = 8 << 20  # fetched at once where a remote file is read from front to back
BUFFER_BYTES = 8 << 10
VERSIONS = ("ETag", "etag", "blob_id", "md5Hash", "content_hash", "checksum")
TIMES = ("LastModified", "last_modified", "mtime", "updated", "modified", "created")


def is_file(address: str) -> bool:
    """Raises InputError where a server, or a right, is missing."""
    return _info(address).get("type") == "file" if is_remote(address) else Path(address).is_file()


def is_folder(address: str) -> bool:
    """Raises InputError where a server, or a right, is missing."""
    return _info(address).get("type") == "directory" if is_remote(address) else Path(address).is_dir()


def name_of(address: str) -> str:
    """The last part of an address, without folders and query."""
    return PurePosixPath(address.partition("?")[0] if protocol_of(address) in WEB else address).name


def all_below(address: str) -> list[str]:
    """Every file below a folder, by full address, sorted. Raises InputError."""
    if not is_remote(address):
        return sorted(str(p.absolute()) for p in Path(address).rglob("*") if p.is_file())
    fs, path = filesystem(address)
    with explained(address, "cannot be listed"):
        return sorted(fs.unstrip_protocol(p) for p in fs.find(path) if not p.endswith("/"))


def matching(pattern: str) -> list[str]:
    """Every file that a glob matches, by full address, sorted. Raises InputError."""
    if not is_remote(pattern):
        found = map(Path, glob.glob(pattern, recursive=True))  # noqa: PTH207 - Path.glob takes no absolute pattern
        return sorted(str(p.absolute()) for p in found if p.is_file())
    fs, path = filesystem(pattern)
    with explained(pattern, "cannot be listed"):
        matches = fs.glob(path, detail=True)
    return sorted(fs.unstrip_protocol(p) for p, about in matches.items() if about["type"] == "file")


def full(address: str) -> str:
    """The address with all of its folders; a remote one as its file system writes it."""
    return canonical(address) if is_remote(address) else str(Path(address).absolute())


def lies_in(address: str, place: str) -> bool:
    """Whether an address is a place, or below it. Links are followed; another protocol is another place."""
    if is_remote(address) != is_remote(place):
        return False
    if is_remote(address):
        return f"{canonical(address)}/".startswith(f"{canonical(place)}/")
    return Path(address).resolve().is_relative_to(Path(place).resolve())


def size_of(address: str) -> int:
    """Bytes, as stored. Raises InputError."""
    size = _known(address)["size"]
    if size is None:
        raise InputError(f"{address}: the server does not tell its size: download it first")
    return int(size)


def open_file(address: str, is_sequential: bool = True) -> BinaryIO:
    """Its bytes as stored, from the first on; it can seek. is_sequential: a remote file is read from front to back, so
    that blocks of 8 MiB are fetched ahead; else what is asked for is fetched and no more. Raises InputError, while it
    is read too."""
    if is_remote(address):
        return cast(BinaryIO, io.BufferedReader(_RemoteBytes(address, is_sequential), BUFFER_BYTES))
    try:
        return Path(address).open("rb")
    except OSError as error:
        raise InputError(f"{address}: cannot be read: {error}") from error


def fingerprint(address: str) -> dict[str, object]:
    """What tells that a file is the one of last time: path, size and mtime_ns; of a remote one its etag, or the time of
    its last change where the store has none. Raises InputError."""
    about = _known(address)
    if not is_remote(address):
        return {"path": address, "size": about["size"], "mtime_ns": about["mtime_ns"]}
    found: dict[str, object] = {"path": redacted(address), "size": about["size"]}
    version = next((about[k] for k in VERSIONS if about.get(k)), None)
    changed = next((about[k] for k in TIMES if about.get(k)), None)
    if version is not None:
        return found | {"etag": str(version).strip('"')}
    if changed is not None:
        return found | {"changed": changed.isoformat() if hasattr(changed, "isoformat") else str(changed)}
    return found


def _known(address: str) -> dict[str, Any]:
    """Size and version of a file. Raises InputError where there is none."""
    if is_remote(address):
        about = _info(address)
        if about.get("type") != "file":
            raise InputError(f"{address}: cannot be read: there is no such file")
        return about
    try:
        stat = Path(address).stat()
    except OSError as error:
        raise InputError(f"{address}: cannot be read: {error}") from error
    return {"size": stat.st_size, "mtime_ns": stat.st_mtime_ns}


def _info(address: str) -> dict[str, Any]:
    """What a file system tells of an address; nothing where nothing is there."""
    fs, path = filesystem(address)
    with explained(address, "cannot be read"):
        try:
            return dict(fs.info(path))
        except FileNotFoundError as error:
            if answer_code(error) == "NoSuchBucket":
                raise
            cause = error.__cause__
            if protocol_of(address) in WEB and cause is not None and _is_other_failure(cause):
                raise cause from None
            return {}


def _is_other_failure(cause: BaseException) -> bool:
    """Whether a file of a web server that fsspec calls missing is something else: no connection, no right."""
    return isinstance(cause, network_errors()) and getattr(cause, "status", None) not in (404, 410)


class _RemoteBytes(io.RawIOBase):
    """A file of an fsspec file system whose errors say which file it is and what to do."""

    def __init__(self, address: str, is_sequential: bool) -> None:
        super().__init__()
        self._address = address
        fs, path = filesystem(address)
        cache = "readahead" if is_sequential else "none"
        with explained(address, "cannot be read"):
            self._file = fs.open(path, "rb", block_size=BLOCK_BYTES, cache_type=cache)
        if not self._file.seekable():
            raise InputError(f"{address}: the server gives no part of a file alone, only all of it: download it first")

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        data = self._read(len(view))
        view[: len(data)] = data
        return len(data)

    def readall(self) -> bytes:
        begin = self.tell()
        end = self.seek(0, io.SEEK_END)
        self.seek(begin)
        return self._read(end - begin) if end > begin else b""

    def _read(self, num_bytes: int) -> bytes:
        try:
            return bytes(self._file.read(num_bytes))
        except network_errors(ValueError) as error:  # what a server that answers with other bytes leads to
            raise InputError(
                f"{self._address}: reading broke off at byte {self._file.tell():,}: {type(error).__name__}: {error}. "
                "What was committed stays; the same command goes on from there"
            ) from None

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return int(self._file.seek(offset, whence))

    def tell(self) -> int:
        return int(self._file.tell())

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()
