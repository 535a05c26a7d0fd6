"""A rank as packhorse's process sees it: a process and the pipe to it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from multiprocessing import Pipe
from pathlib import Path
from typing import Any

MODULE = "packhorse.backends.torch.parallel.rank"
SIGNALS = (signal.SIGINT, signal.SIGTERM)
END_S = 5.0  # from the end of its pipe to the end of its process


class GoneError(Exception):
    """The process ended; its message says how."""


class RankProcess:
    def __init__(self, rank: int, device: str) -> None:
        """Starts it; it is not a fork, and the user's own main module is not run again."""
        self.rank, self.device = rank, device
        self.connection, theirs = Pipe()
        flags = ["-P", "-W", "ignore", "-m", MODULE, str(theirs.fileno())]
        # A blocked signal stays blocked in a new process: not even while it starts does Ctrl-C end it.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        try:
            self._process = subprocess.Popen(
                [sys.executable, *flags], stdin=subprocess.DEVNULL, stdout=2, pass_fds=[theirs.fileno()],
                env=_environment(self.device),
            )  # fmt: skip
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        theirs.close()

    @property
    def pid(self) -> int:
        return self._process.pid

    def send(self, kind: str, values: Any = None) -> None:
        """Raises GoneError."""
        try:
            self.connection.send((kind, values))
        except OSError:
            raise GoneError(self._how_it_ended()) from None

    def receive(self) -> tuple[str, Any]:
        """Waits. Raises GoneError."""
        try:
            kind, values = self.connection.recv()
        except (EOFError, OSError):
            raise GoneError(self._how_it_ended()) from None
        return kind, values

    def _how_it_ended(self) -> str:
        where = f"the process of rank {self.rank} on {self.device}"
        try:
            code = self._process.wait(END_S)
        except subprocess.TimeoutExpired:
            return f"{where} closed its pipe"
        if code < 0:
            hint = ": perhaps the system ran out of memory" if code == -signal.SIGKILL else ""
            return f"{where} was killed by signal {-code} ({signal.strsignal(-code)}){hint}"
        return f"{where} ended with exit code {code}"

    def end(self, timeout_s: float = 0.0) -> None:
        """It is killed where it does not end by itself in that time."""
        try:
            self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self.connection.close()


def _environment(device: str) -> dict[str, str]:
    """Modules come from where ours come from; OpenMP's threads sleep while they wait, as in the command line. A rank on
    the processor sees no GPU: transformers would take it."""
    path = os.pathsep.join(entry or str(Path.cwd()) for entry in sys.path if isinstance(entry, str))
    hidden = {"CUDA_VISIBLE_DEVICES": ""} if device == "cpu" else {}
    return {"OMP_WAIT_POLICY": "PASSIVE"} | os.environ | {"PYTHONPATH": path} | hidden
