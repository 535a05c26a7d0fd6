"""What a run folder records, and how: JSON with a checksum over itself."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from sys import intern
from typing import Any, NamedTuple

from packhorse.data import Position, Shard
from packhorse.errors import ChangedError, DamagedError


class FileRecord(NamedTuple):
    """A file as it was committed."""

    name: str
    num_bytes: int
    sha256: str

    def to_dict(self) -> dict[str, Any]:
        return {"name": self.name, "bytes": self.num_bytes, "sha256": self.sha256}

    @classmethod
    def from_dict(cls, value: dict[str, Any]) -> FileRecord:
        """Raises KeyError where it is of another shape."""
        return cls(value["name"], value["bytes"], value["sha256"])


@dataclass(frozen=True, slots=True)
class Commit:
    """A committed shard's record. `part` names its part, `beside` the files that belong to that. error_rows: numbers of
    the shard's rows in error, ascending; older versions did not record them."""

    shard: Shard
    part: str
    num_bytes: int
    sha256: str
    counters: dict[str, Any]
    beside: tuple[FileRecord, ...] = ()
    error_rows: tuple[int, ...] = ()

    @property
    def files(self) -> tuple[FileRecord, ...]:
        """All of the part, in the writer's order."""
        return (FileRecord(self.part, self.num_bytes, self.sha256), *self.beside)

    def to_json(self) -> bytes:
        s = self.shard
        record = {
            "index": s.index, "first_row": s.first_row, "num_rows": s.num_rows, "start": s.start, "end": s.end,
            "part": self.part, "bytes": self.num_bytes, "sha256": self.sha256, "counters": self.counters,
        }  # fmt: skip
        beside = {"beside": [f.to_dict() for f in self.beside]} if self.beside else {}
        errors = {"error_rows": ranges(self.error_rows)} if self.error_rows else {}
        return sealed(record | beside | errors, indent=None)

    @classmethod
    def from_json(cls, data: bytes) -> Commit:
        r = unsealed(data)
        shard = Shard(r["index"], r["first_row"], r["num_rows"], Position(*r["start"]), Position(*r["end"]))
        beside = tuple(FileRecord.from_dict(f) for f in r.get("beside", ()))
        errors = tuple(rows_of_ranges(r.get("error_rows", "")))
        return cls(shard, r["part"], r["bytes"], r["sha256"], _interned(r["counters"]), beside, errors)


@dataclass(frozen=True, slots=True)
class MirroredFile:
    """The output of one input file. index: the input file's number; files: by their names in the output folder."""

    index: int
    rows: int
    files: tuple[FileRecord, ...]

    def to_json(self) -> bytes:
        return sealed({"index": self.index, "rows": self.rows, "files": [f.to_dict() for f in self.files]})

    @classmethod
    def from_json(cls, data: bytes) -> MirroredFile:
        r = unsealed(data)
        return cls(r["index"], r["rows"], tuple(FileRecord.from_dict(f) for f in r["files"]))


def commit_of(path: str, data: bytes) -> Commit:
    """The record of that path. Raises DamagedError where it is broken."""
    try:
        return Commit.from_json(data)
    except (ValueError, KeyError, TypeError) as error:
        raise DamagedError(f"{path}: is no shard record: {error}") from error


def mirrored_file_of(path: str, data: bytes) -> MirroredFile:
    """The record of that path. Raises DamagedError where it is broken."""
    try:
        return MirroredFile.from_json(data)
    except (ValueError, KeyError, TypeError) as error:
        raise DamagedError(f"{path}: is no record of a file: {error}") from error


def ranges(rows: Sequence[int]) -> str:
    """Ascending numbers in short: "3,7-12"."""
    found: list[list[int]] = []
    for row in rows:
        if found and found[-1][1] == row - 1:
            found[-1][1] = row
        else:
            found.append([row, row])
    return ",".join(f"{first}" if first == last else f"{first}-{last}" for first, last in found)


def rows_of_ranges(text: str) -> Iterator[int]:
    """The numbers again. Raises ValueError where the text is of another shape."""
    for piece in text.split(",") if text else ():
        first, _, last = piece.partition("-")
        yield from range(int(first), int(last or first) + 1)


def sealed(record: dict[str, Any], indent: int | None = 1) -> bytes:
    """The record as JSON with a sha256 over itself: a flipped bit is found where it is read.

    indent: None for what there are very many of: a record on one line is read in 33 us instead of 53, since reading
    makes the same bytes again.
    """
    return json.dumps(record | {"checksum": _checksum(record)}, indent=indent).encode()


def unsealed(data: bytes) -> dict[str, Any]:
    """The record. Raises ValueError where its checksum does not fit."""
    record: dict[str, Any] = json.loads(data)
    content = {k: v for k, v in record.items() if k != "checksum"} if isinstance(record, dict) else {}
    if data != sealed(content, None if b"\n" not in data else 1):
        raise ValueError("its checksum does not fit its content")
    return content


def _interned(values: dict[str, Any]) -> dict[str, Any]:
    """The same with names that all records share: a job's last step holds all of them, 4 KB each without."""
    return {intern(k): _interned(v) if isinstance(v, dict) else v for k, v in values.items()}


def _checksum(record: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def check_unchanged(manifest: dict[str, Any], now: dict[str, Any]) -> None:
    """Raises ChangedError that lists what differs between the run folder and this command."""
    lines = []
    for part, value in now.items():
        lines += differences(part, manifest.get(part), value)
    if lines:
        listing = "\n".join(f"  {line}" for line in lines[:12])
        raise ChangedError(
            f"this output was begun with something else:\n{listing}\n"
            "Change it back, choose another output, or --overwrite to start anew"
        )


def differences(name: str, old: Any, new: Any) -> list[str]:
    """What differs between two JSON values of that name, a line each."""
    new = json.loads(json.dumps(new))
    if old == new:
        return []
    if isinstance(old, dict) and isinstance(new, dict):
        return [line for key in {**old, **new} for line in differences(f"{name}.{key}", old.get(key), new.get(key))]
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        return [
            line for i, (a, b) in enumerate(zip(old, new, strict=True)) for line in differences(f"{name}[{i}]", a, b)
        ]
    return [f"{name}: {_short(old)} then, {_short(new)} now"]


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 80 else text[:77] + "..."
