"""The lock of an output in an object store: an object that says who works, renewed while it does.

One that is not renewed for a minute is taken over, at once where its holder was a process of this machine that is gone.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from packhorse.errors import LockedError, OutputError
from packhorse.outputs.stores.puts import Puts, Version
from packhorse.remote import GOES_ON, explained, network_errors

STARTED = 19  # field 22 of /proc/PID/stat, counted behind the name: proc_pid_stat(5), starttime, in clock ticks


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds: between renewals; without one until another run may take over; between looks at a lock that may be dead;
    until a run that took over looks again, where the store does not tell of two who did."""

    renew_s: float = 20.0
    expire_s: float = 60.0
    look_s: float = 2.0
    settle_s: float = 3.0


class Lease:
    """A Lock. Of two that want it at once one gets it: the store decides where it can (Puts.is_atomic)."""

    def __init__(
        self,
        puts: Puts,
        path: str,
        timing: Timing,
        say: Callable[[str], None],
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        """Takes it. Raises LockedError that names the holder, and what the file system raises.

        say: is told that a lock is watched to see whether its holder is alive. pause: waits so many seconds between two
        looks at it; what it raises ends the watching.
        """
        self._pause = pause
        self._puts, self._path, self._timing = puts, path, timing
        self._holder: dict[str, Any] = _this_process()
        self._lost_to: str | None = None
        self._mutex, self._end = threading.Lock(), threading.Event()
        self._version = self._take(say)
        self._confirmed_s = _clock_s()
        self._thread = threading.Thread(target=self._renew_on, name="packhorse-lease", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Raises LockedError where another run has taken it, OutputError where renewing is overdue and the store
        cannot be asked."""
        if _clock_s() - self._confirmed_s > self._timing.expire_s / 2:
            with explained(_output(self._path), "its lock cannot be renewed", OutputError, GOES_ON):
                self._renew()
        if self._lost_to is not None:
            raise LockedError(
                f"{_output(self._path)}: {self._lost_to} has taken over this output, because this run did not show for "
                f"{self._timing.expire_s:.0f} s. What was committed stays, and is the other run's now"
            )

    def release(self) -> None:
        self._end.set()
        self._thread.join()
        try:
            now = self._puts.read(self._path)
            if now is not None and self._is_mine(now):
                self._puts.delete(self._path)
        except network_errors():
            return  # whoever comes next finds a lock whose process is gone

    # -- taking it

    def _take(self, say: Callable[[str], None]) -> Version:
        taken = None
        while taken is None:
            taken = self._puts.create(self._path, self._content()) or self._take_over(say)
        if not self._puts.is_atomic:
            time.sleep(self._timing.settle_s)
            taken = self._puts.read(self._path)
            if taken is None or not self._is_mine(taken):
                raise _locked(self._path, taken)
        return taken

    def _take_over(self, say: Callable[[str], None]) -> Version | None:
        """The lock of a holder that is dead; None where it is gone meanwhile. Raises LockedError."""
        seen = self._puts.read(self._path)
        if seen is None or self._is_mine(seen):  # the answer to our own put was lost on its way, and it was repeated
            return seen
        is_alive = _is_alive(_parsed(seen.data))
        if is_alive is None:
            say(f"{_named(seen.data)} may be working on this output: watching its lock {self._timing.expire_s:.0f} s")
            seen = self._watched(seen)
        if is_alive:
            raise _locked(self._path, seen)
        if seen is None:
            return None
        taken = self._puts.replace(self._path, self._content(), seen)
        if taken is None:
            now = self._puts.read(self._path)
            if now is not None and not self._is_mine(now):
                raise _locked(self._path, now)
            return now
        return taken

    def _watched(self, seen: Version) -> Version | None:
        """The lock, not renewed for as long as it takes to expire; None where it is gone. Raises LockedError."""
        begin_s = _clock_s()
        while _clock_s() - begin_s < self._timing.expire_s:
            self._pause(self._timing.look_s)
            now = self._puts.read(self._path)
            if now is None:
                return None
            if now.mark != seen.mark:
                raise _locked(self._path, now)
        return seen

    # -- keeping it

    def _renew_on(self) -> None:
        while not self._end.wait(self._timing.renew_s) and self._lost_to is None:
            try:
                self._renew()
            except network_errors():
                continue  # check() asks again before the next commit, and raises

    def _renew(self) -> None:
        with self._mutex:
            self._holder["renewals"] += 1
            renewed = self._puts.replace(self._path, self._content(), self._version)
            if renewed is None:
                now = self._puts.read(self._path)
                if now is None or not self._is_mine(now):
                    self._lost_to = _named(now.data) if now else "another run"
                    return
                renewed = now
            self._version, self._confirmed_s = renewed, _clock_s()

    def _content(self) -> bytes:
        return json.dumps(self._holder).encode()

    def _is_mine(self, version: Version) -> bool:
        return _parsed(version.data).get("token") == self._holder["token"]


def _clock_s() -> float:
    """Goes on while the machine sleeps, where the system has such a clock."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic()


def _this_process() -> dict[str, Any]:
    return _machine() | {
        "pid": os.getpid(),
        "started_s": _started_s(os.getpid()),
        "token": secrets.token_hex(16),
        "renewals": 0,
    }


def _machine() -> dict[str, Any]:
    """Host, boot and namespace of process ids: one pid means different processes in containers of one host name."""
    boot, pids = Path("/proc/sys/kernel/random/boot_id"), Path("/proc/self/ns/pid")
    return {
        "host": socket.gethostname(),
        "boot": boot.read_text().strip() if boot.exists() else "",
        "pids": str(pids.readlink()) if pids.is_symlink() else "",
    }


def _started_s(pid: int) -> float | None:
    """When a process began, on Linux since the machine did; None where there is none. Tells it from a later one with
    the same id. Not by the time of day: a clock that is set while it runs would make it another process."""
    stat = Path(f"/proc/{pid}/stat")
    try:
        if Path("/proc/self/stat").exists():
            return int(stat.read_text(errors="replace").rpartition(")")[2].split()[STARTED]) / os.sysconf("SC_CLK_TCK")
        return _created_s(pid)
    except (FileNotFoundError, ProcessLookupError):
        return None


def _created_s(pid: int) -> float | None:
    import psutil

    try:
        return round(psutil.Process(pid).create_time(), 2)
    except psutil.NoSuchProcess:
        return None


def _is_alive(holder: dict[str, Any]) -> bool | None:
    """Of a process of this machine; None for one of another, which nobody here can know, and for this very process,
    which may have failed to release it."""
    pid = holder.get("pid")
    if any(holder.get(k) != v for k, v in _machine().items()) or not isinstance(pid, int):
        return None
    is_alive = _started_s(pid) == holder.get("started_s")
    return None if is_alive and pid == os.getpid() else is_alive


def _parsed(data: bytes) -> dict[str, Any]:
    try:
        found = json.loads(data)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _named(data: bytes) -> str:
    holder = _parsed(data)
    return f"process {holder['pid']} on {holder['host']}" if {"pid", "host"} <= holder.keys() else "another process"


def _output(path: str) -> str:
    return path.rpartition("/")[0].rpartition("/")[0]


def _locked(path: str, version: Version | None) -> LockedError:
    holder = _named(version.data) if version else "another process"
    return LockedError(f"{_output(path)}: {holder} is working on this output; wait for it or stop it")
