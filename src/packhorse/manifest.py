"""The run folder: what was asked, what was decided, which shards are committed. Nothing else knows its layout.

    out/                        -o out/                    -o x.parquet: all of it in x.parquet.packhorse/
      part-000000.parquet       final as soon as visible
      _packhorse/
        manifest.json           fingerprints, settings, plan, budgets; rewritten by rename
        shards/000000.json      one a commit, immutable, written after its part
        report.json, report.html
        lock                    held with flock while a run works; says who holds it

manifest.json: {"format": 1, "settings", "input", "model", "plan", "budgets": [[first shard, tokens, rows]], "finished",
"sha256" (of a one-file output)}.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import shutil
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from packhorse.data import Position, Shard
from packhorse.disk import Disk, sha256_of
from packhorse.errors import ChangedError, DamagedError, LockedError, RefusedError

FORMAT = 1
STATE = "_packhorse"
PART = re.compile(r"part-\d{6,}\.(parquet|jsonl)")


@dataclass(frozen=True, slots=True)
class Commit:
    """A committed shard's record."""

    shard: Shard
    part: str
    num_bytes: int
    sha256: str
    counters: dict[str, Any]

    def to_json(self) -> bytes:
        s = self.shard
        record = {
            "index": s.index, "first_row": s.first_row, "num_rows": s.num_rows, "start": s.start, "end": s.end,
            "part": self.part, "bytes": self.num_bytes, "sha256": self.sha256, "counters": self.counters,
        }  # fmt: skip
        return sealed(record)

    @classmethod
    def from_json(cls, data: bytes) -> Commit:
        r = unsealed(data)
        shard = Shard(r["index"], r["first_row"], r["num_rows"], Position(*r["start"]), Position(*r["end"]))
        return cls(shard, r["part"], r["bytes"], r["sha256"], r["counters"])


class RunFolder:
    """An output and its bookkeeping. `file` is the one-file output, None for a folder of parts."""

    def __init__(self, output: str, is_file: bool, disk: Disk | None = None) -> None:
        path = Path(output).absolute()
        self.file = path if is_file else None
        self.root = path.with_name(path.name + ".packhorse") if is_file else path
        self.state = self.root / STATE
        self.disk = disk or Disk()
        self._lock: IO[str] | None = None

    @property
    def places(self) -> list[Path]:
        """Where it writes, as real paths."""
        return [p.resolve() for p in (self.root, self.file) if p is not None]

    # -- who may work in it

    def lock(self) -> None:
        """Raises LockedError, naming the holder, while another process works here. A dead holder's lock is void."""
        (self.state / "shards").mkdir(parents=True, exist_ok=True)
        file = (self.state / "lock").open("a+", encoding="utf-8")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read().strip() or "another process"
            file.close()
            raise LockedError(f"{self.root}: {holder} is working on this output; wait for it or stop it") from None
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        self._lock = file

    def unlock(self) -> None:
        if self._lock is not None:
            self._lock.truncate(0)
            self._lock.close()
            self._lock = None

    # -- what it holds

    @property
    def exists(self) -> bool:
        return (self.state / "manifest.json").is_file()

    def check_is_ours(self, overwrite: bool) -> None:
        """Raises RefusedError where the output holds what no run put there, and, unless told to overwrite, parts
        or a file without a manifest."""
        if self.file is not None and self.file.is_dir():
            raise RefusedError(f"{self.file} is a folder; for parts in it write {self.file}/, for a file another name")
        names = sorted(p.name for p in self.root.iterdir()) if self.root.is_dir() else []
        foreign = [n for n in names if n != STATE and not PART.fullmatch(n) and not n.startswith(".")]
        if foreign and not self.exists:
            raise RefusedError(
                f"{self.root} holds {foreign[0]!r}, which is no output of packhorse; choose another folder"
            )
        if overwrite or self.exists:
            return
        if self.file is not None and self.file.exists():
            raise RefusedError(
                f"{self.file} exists and belongs to no run that can be continued; --overwrite replaces it"
            )
        if any(PART.fullmatch(n) for n in names):
            raise RefusedError(
                f"{self.root} holds parts but no manifest, so it cannot be continued; --overwrite replaces them"
            )

    def clear(self) -> None:
        """Deletes parts, bookkeeping and a one-file output; touches nothing else."""
        (self.state / "manifest.json").unlink(missing_ok=True)  # first: what is left is then no finished run
        for part in [p for p in self.root.iterdir() if PART.fullmatch(p.name)]:
            part.unlink()
        if self.file is not None:
            self.file.unlink(missing_ok=True)
        shutil.rmtree(self.state / "shards", ignore_errors=True)
        for report in (self.state / "report.json", self.html_path):
            report.unlink(missing_ok=True)
        (self.state / "shards").mkdir(parents=True, exist_ok=True)

    def manifest(self) -> dict[str, Any]:
        """Raises DamagedError where it cannot be read, RefusedError for a newer format."""
        path = self.state / "manifest.json"
        try:
            manifest = unsealed(path.read_bytes())
        except (OSError, ValueError) as error:
            raise DamagedError(f"{path}: cannot be read: {error}") from error
        if manifest.get("format") != FORMAT:
            raise RefusedError(f"{path}: format {manifest.get('format')}; this version reads format {FORMAT}")
        return manifest

    def write_manifest(self, manifest: dict[str, Any]) -> None:
        self.disk.write_atomic(self.state / "manifest.json", sealed({"format": FORMAT} | manifest))

    def commits(self) -> list[Commit]:
        """The committed shards from the first on, without a gap. Raises DamagedError naming a record that is broken."""
        found: list[Commit] = []
        for path in sorted((self.state / "shards").glob("[0-9]*.json")):
            try:
                commit = Commit.from_json(path.read_bytes())
            except (ValueError, KeyError, TypeError) as error:
                raise DamagedError(f"{path}: is no shard record: {error}") from error
            if commit.shard.index != len(found):
                break
            found.append(commit)
        return found

    def check_parts(self, commits: list[Commit]) -> None:
        """Raises DamagedError where a committed part is missing or has another size."""
        for commit in commits:
            path = self.root / commit.part
            size = path.stat().st_size if path.is_file() else None
            if size != commit.num_bytes:
                seen = "is missing" if size is None else f"has {size} bytes"
                raise DamagedError(f"{path} {seen}, {commit.num_bytes} bytes were committed; --overwrite starts anew")

    def check_finished(self, manifest: dict[str, Any]) -> None:
        """Raises DamagedError where what a finished run left is gone or has another size."""
        commits = self.commits()
        if self.file is None:
            self.check_parts(commits)
        elif not self.file.is_file() or self.file.stat().st_size != manifest["bytes"]:
            raise DamagedError(f"{self.file} is not the file that the finished run left; --overwrite starts anew")
        else:
            self._drop_parts(commits)

    def _drop_parts(self, commits: list[Commit]) -> None:
        """The parts of a one-file output, once it is there."""
        for commit in commits:
            (self.root / commit.part).unlink(missing_ok=True)

    # -- how a shard becomes final

    def commit(self, shard: Shard, extension: str, write: Callable[[str], None], counters: dict[str, Any]) -> Commit:
        """Part first, record after it: a part without a record is computed again, to the same bytes."""
        name = f"part-{shard.index:06d}{extension}"
        temporary = self.state / f"{name}.tmp"
        write(str(temporary))
        commit = Commit(shard, name, temporary.stat().st_size, sha256_of(temporary), counters)
        self.disk.publish(temporary, self.root / name)
        self.disk.write_atomic(self.state / "shards" / f"{shard.index:06d}.json", commit.to_json())
        return commit

    def finish(
        self, rows: int, commits: list[Commit], extension: str, assemble: Callable[[list[str], str], None]
    ) -> str | None:
        """Marks the run as finished; a one-file output appears here by one rename. Returns its sha256."""
        manifest = self.manifest()
        if self.file is not None:
            temporary = self.state / f"whole{extension}.tmp"
            for commit in commits:
                if sha256_of(self.root / commit.part) != commit.sha256:
                    raise DamagedError(f"{self.root / commit.part} is not as committed; --overwrite starts anew")
            assemble([str(self.root / c.part) for c in commits], str(temporary))
            manifest |= {"sha256": sha256_of(temporary), "bytes": temporary.stat().st_size}
            self.disk.publish(temporary, self.file)
        self.write_manifest(manifest | {"finished": True, "rows": rows})
        if self.file is not None:
            self._drop_parts(commits)
        return manifest.get("sha256")

    @property
    def html_path(self) -> Path:
        return self.state / "report.html"

    @property
    def has_report(self) -> bool:
        """Whether both files of it are there."""
        return (self.state / "report.json").is_file() and self.html_path.is_file()

    def report(self) -> dict[str, Any]:
        """report.json as it was written; empty where there is none. Raises DamagedError where it is no JSON."""
        path = self.state / "report.json"
        try:
            report: dict[str, Any] = json.loads(path.read_bytes()) if path.is_file() else {}
        except ValueError as error:
            raise DamagedError(f"{path}: cannot be read: {error}; deleted, it is written anew") from error
        return report

    def write_report(self, report: dict[str, Any], html: str) -> None:
        """report.json and the same as a page."""
        self.disk.write_atomic(self.state / "report.json", json.dumps(report, indent=1).encode())
        self.disk.write_atomic(self.html_path, html.encode())


def sealed(record: dict[str, Any]) -> bytes:
    """The record as JSON with a sha256 over itself: a flipped bit is found where it is read."""
    return json.dumps(record | {"checksum": _checksum(record)}, indent=1).encode()


def unsealed(data: bytes) -> dict[str, Any]:
    """The record. Raises ValueError where its checksum does not fit."""
    record: dict[str, Any] = json.loads(data)
    content = {k: v for k, v in record.items() if k != "checksum"} if isinstance(record, dict) else {}
    if data != sealed(content):
        raise ValueError("its checksum does not fit its content")
    return content


def _checksum(record: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def check_unchanged(manifest: dict[str, Any], now: dict[str, Any]) -> None:
    """Raises ChangedError that lists what differs between the run folder and this command."""
    lines = []
    for part, value in now.items():
        lines += _differences(part, manifest.get(part), value)
    if lines:
        listing = "\n".join(f"  {line}" for line in lines[:12])
        raise ChangedError(
            f"this output was begun with something else:\n{listing}\n"
            "Change it back, choose another output, or --overwrite to start anew"
        )


def _differences(name: str, old: Any, new: Any) -> list[str]:
    new = json.loads(json.dumps(new))
    if old == new:
        return []
    if isinstance(old, dict) and isinstance(new, dict):
        return [line for key in {**old, **new} for line in _differences(f"{name}.{key}", old.get(key), new.get(key))]
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        return [
            line for i, (a, b) in enumerate(zip(old, new, strict=True)) for line in _differences(f"{name}[{i}]", a, b)
        ]
    return [f"{name}: {_short(old)} then, {_short(new)} now"]


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 80 else text[:77] + "..."
