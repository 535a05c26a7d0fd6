"""The few steps with which bytes become final. One small class, so that tests can stop it at each of them."""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path

from packhorse.errors import OutputError


class Disk:
    """write -> fsync -> rename -> fsync of the folder: after a crash a name shows all of its bytes or none."""

    def write(self, path: Path, data: bytes) -> None:
        path.write_bytes(data)

    def fsync(self, path: Path) -> None:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def rename(self, source: Path, target: Path) -> None:
        source.replace(target)

    def free_bytes(self, folder: Path) -> int:
        return shutil.disk_usage(folder).free

    def check_room(self, folder: Path, num_bytes: int) -> None:
        """Raises OutputError where the file system of a folder has no room for so many bytes more."""
        free = self.free_bytes(folder)
        if free < num_bytes:
            raise OutputError(
                f"{folder}: {free:,} bytes are free, {num_bytes:,} are needed to put the parts together as one file. "
                "What was computed stays: make room there, and the same command, without --overwrite, goes on"
            )

    def publish(self, temporary: Path, final: Path) -> None:
        """Makes a written file final under its name."""
        self.fsync(temporary)
        self.rename(temporary, final)
        self.fsync(final.parent)

    def write_atomic(self, path: Path, data: bytes) -> None:
        temporary = path.with_name(path.name + ".tmp")
        self.write(temporary, data)
        self.publish(temporary, path)


def sha256_of(path: str | Path) -> str:
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
