"""The server as a process: started in a group of its own, seen to die at once, and gone with all that it started."""

from __future__ import annotations

import io
import os
import select
import signal
import subprocess
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import IO, Any

from packhorse.backends.vllm import server

LOOK_S = 0.5  # how often a silent process is looked at: a child of it may hold its pipe open after its death
CHUNK = 2**20
KEPT_LINES = 40
GRACE_S = 5.0


class ServerDiedError(Exception):
    """The message says how it ended and what it wrote last."""


class Server:
    """One process of server.py. Everything raises ServerDiedError where it is gone."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str]) -> None:
        try:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0,
                env=dict(environment), start_new_session=True,
            )  # fmt: skip
        except OSError as error:
            raise ServerDiedError(f"cannot be started: {error}") from error
        self._lines: deque[str] = deque(maxlen=KEPT_LINES)
        self._reader = threading.Thread(target=self._keep_lines, daemon=True)
        self._reader.start()
        self._buffer = bytearray()

    @property
    def pid(self) -> int:
        return self._process.pid

    def send(self, message: Mapping[str, Any], payload: bytes = b"") -> None:
        view = memoryview(server.pack(message, payload))
        try:
            while view:
                view = view[os.write(self._fileno(self._process.stdin), view) :]
        except OSError:
            raise self._died() from None

    def receive(self, limit_s: float | None = None) -> tuple[dict[str, Any], bytes]:
        """The next frame: what it says, and its raw bytes. Raises TimeoutError after limit_s without one."""
        end = None if limit_s is None else time.monotonic() + limit_s
        frame = server.read_frame(lambda size: self._read(size, end))
        if frame is None:
            raise self._died()
        message, payload = frame
        return message, payload

    def last_lines(self, count: int = 8) -> str:
        """Of what it wrote to standard error, or printed."""
        return "\n".join(list(self._lines)[-count:])

    def close(self) -> None:
        """Lets it end by itself, for a while, then ends what is left of its group; may be called twice."""
        with suppress(ServerDiedError):
            self.send({"do": "close"})
        self._wait()
        self.kill()

    def kill(self) -> None:
        """Ends it and its group at once. The leader is reaped last: until then its number is nobody else's."""
        if self._process.returncode is None:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, signal.SIGKILL)
        self._process.wait()
        self._reader.join(GRACE_S)
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()

    # -- inside

    def _is_gone(self) -> bool:
        """Whether it has ended; it is not reaped."""
        if self._process.returncode is not None:
            return True
        return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is not None

    def _wait(self) -> None:
        """A while for it to end by itself: its pipes are closed before its status is there."""
        end = time.monotonic() + GRACE_S
        while not self._is_gone() and time.monotonic() < end:
            time.sleep(0.01)

    def _read(self, size: int, end: float | None) -> bytes:
        """size bytes, or fewer where the process is gone and its pipe empty."""
        pipe = self._fileno(self._process.stdout)
        while len(self._buffer) < size:
            is_gone = self._is_gone()
            if end is not None and time.monotonic() > end:
                raise TimeoutError
            if not select.select([pipe], [], [], 0 if is_gone else LOOK_S)[0]:
                if is_gone:
                    break
                continue
            if not (chunk := os.read(pipe, CHUNK)):
                break
            self._buffer += chunk
        taken = bytes(self._buffer[:size])
        del self._buffer[:size]
        return taken

    def _died(self) -> ServerDiedError:
        self._wait()
        self.kill()
        code = self._process.returncode
        how = f"was ended by signal {-code}" if code < 0 else f"ended with status {code}"
        said = self.last_lines()
        return ServerDiedError(f"{how}; it wrote last:\n{said}" if said else f"{how} and wrote nothing")

    def _keep_lines(self) -> None:
        errors = self._process.stderr
        assert errors is not None
        with errors:
            for line in io.TextIOWrapper(errors, errors="replace"):
                if line.strip():
                    self._lines.append(line.rstrip())

    @staticmethod
    def _fileno(pipe: IO[bytes] | None) -> int:
        """Raises OSError where it is closed."""
        if pipe is None or pipe.closed:
            raise OSError("closed")
        return pipe.fileno()
