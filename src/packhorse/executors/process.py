"""A worker process as the coordinator sees it: started, heard, and known to have ended."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from multiprocessing import Pipe
from pathlib import Path
from typing import Any

from packhorse.executors.handing import Task
from packhorse.executors.wire import Message, Wire, WireClosedError
from packhorse.executors.worker import Ended, Facts

LOOK_S = 0.05  # between two looks at what wakes nobody: a stop, a worker that is gone
END_S = 20.0  # that a process is given to close its model
SIGNALS = (signal.SIGINT, signal.SIGTERM)  # Ctrl-C reaches a whole process group: the coordinator alone acts on it


class WorkerGoneError(Exception):
    """The process ended; its message says how."""


class WorkerProcess:
    """A process on a device, started anew where it died. held: the shards that it was handed and has not given back."""

    def __init__(self, module: str, device: str, spec: Any) -> None:
        """module: its main() takes the wire's file descriptor. spec: what it is told to load."""
        self.device, self.restarts = device, 0
        self.restarts_in_a_row = 0  # without a shard in between
        self.held: list[Task] = []
        self.facts: Facts | None = None  # once the model is loaded
        self.ended: Ended | None = None
        self._module, self._spec = module, spec

    def start(self) -> None:
        """A new process; not a fork, and the user's own main module is not run again."""
        self.facts = None
        ours, theirs = Pipe()
        flags = ["-P", "-W", "ignore", "-m", self._module, str(theirs.fileno())]
        # A blocked signal stays blocked in a new process: not even while it starts does Ctrl-C end it.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        try:
            self._process = subprocess.Popen(
                [sys.executable, *flags], stdin=subprocess.DEVNULL, stdout=2, pass_fds=[theirs.fileno()],
                env=_environment(),
            )  # fmt: skip
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        theirs.close()
        self.wire = Wire(ours)
        # What it is told may be more than the pipe holds, and it listens only once its interpreter runs.
        threading.Thread(target=self.send, args=("load", self._spec), daemon=True).start()

    def restart(self) -> None:
        self.kill()
        self.restarts += 1
        self.restarts_in_a_row += 1
        self.start()

    @property
    def pid(self) -> int:
        return self._process.pid

    def send(self, kind: str, values: Any = None, table: Any = None) -> None:
        """Raises nothing where the process is gone: who receives finds out."""
        try:
            self.wire.send(kind, values, table)
        except WireClosedError:
            return

    def receive(self, timeout_s: float) -> Message | None:
        """None where nothing came in that time. Raises WorkerGoneError, and what the worker raised."""
        try:
            message = self.wire.receive(timeout_s)
        except WireClosedError:
            raise WorkerGoneError(self._how_it_ended()) from None
        if message is None and self._process.poll() is not None and not self.wire.has_more:
            raise WorkerGoneError(self._how_it_ended())
        return None if message is None else self.heard(message)

    def heard(self, message: Message) -> Message:
        """Raises what the worker raised."""
        if message.kind == "failed":
            error, where = message.values
            error.add_note(f"in the worker process on {self.device}:\n{where}")
            raise error
        if message.kind == "ready":
            self.facts = message.values
        return message

    def _how_it_ended(self) -> str:
        try:
            code = self._process.wait(END_S)
        except subprocess.TimeoutExpired:
            self.kill()
            return "closed its wire"
        if code < 0:
            return f"was killed by signal {-code} ({signal.strsignal(-code)})" + (
                ": perhaps the system ran out of memory" if code == -signal.SIGKILL else ""
            )
        return f"ended with exit code {code}"

    def kill(self) -> None:
        """At once."""
        self._process.kill()
        self._process.wait()

    def close(self, deadline_s: float) -> None:
        """Once it was told to close its model; at that time of time.monotonic() it is killed."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(max(deadline_s - time.monotonic(), 0))
        self.kill()
        self.wire.close()


def _environment() -> dict[str, str]:
    """Modules come from where ours come from; OpenMP's threads sleep while they wait, as in the command line."""
    # "" is the current folder; imports pass over entries that are no strings.
    path = os.pathsep.join(entry or str(Path.cwd()) for entry in sys.path if isinstance(entry, str))
    return {"OMP_WAIT_POLICY": "PASSIVE"} | os.environ | {"PYTHONPATH": path}
