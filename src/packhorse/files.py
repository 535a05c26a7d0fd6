"""Files by address: a local path, or PROTOCOL://... . Who reads bytes of an input asks here, never a path itself."""

from __future__ import annotations

import glob
from pathlib import Path
from typing import BinaryIO

from packhorse.errors import InputError


def is_remote(address: str) -> bool:
    """Whether it names its protocol: s3://bucket/key."""
    return "://" in address


def is_file(address: str) -> bool:
    return Path(address).is_file()


def is_folder(address: str) -> bool:
    return Path(address).is_dir()


def all_below(address: str) -> list[str]:
    """Every file below a folder, by full address, sorted."""
    return sorted(str(p.absolute()) for p in Path(address).rglob("*") if p.is_file())


def matching(pattern: str) -> list[str]:
    """Every file that a glob matches, by full address, sorted."""
    found = map(Path, glob.glob(pattern, recursive=True))  # noqa: PTH207 - Path.glob takes no absolute pattern
    return sorted(str(p.absolute()) for p in found if p.is_file())


def full(address: str) -> str:
    """The address as it stands in a fingerprint."""
    return str(Path(address).absolute())


def size_of(address: str) -> int:
    """Bytes, as stored. Raises InputError."""
    try:
        return Path(address).stat().st_size
    except OSError as error:
        raise InputError(f"{address}: cannot be read: {error}") from error


def open_file(address: str) -> BinaryIO:
    """Its bytes as stored, from the first on; it can seek. Raises InputError."""
    try:
        return Path(address).open("rb")
    except OSError as error:
        raise InputError(f"{address}: cannot be read: {error}") from error


def fingerprint(address: str) -> dict[str, object]:
    """What tells that a file is the one of last time: path, size and mtime_ns. Raises InputError."""
    try:
        stat = Path(address).stat()
    except OSError as error:
        raise InputError(f"{address}: cannot be read: {error}") from error
    return {"path": address, "size": stat.st_size, "mtime_ns": stat.st_mtime_ns}
