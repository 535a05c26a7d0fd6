"""Commands as forks of one process that has imported what others have written: 6 of the 9 s of a command with torch.

What is forked has imported nothing of packhorse: the command line, its settings and its exit are those of
`python -m packhorse`. Starting from nothing is tested in test_cli.py and test_no_torch.py.
"""

from __future__ import annotations

import atexit
import gc
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

NO_TORCH = [
    "httpx2", "jinja2", "numpy", "pandas", "pyarrow.compute", "pyarrow.parquet", "pydantic", "rich.table", "tokenizers",
    "typer",
]  # fmt: skip
TORCH = [
    *NO_TORCH, "scipy.optimize", "sympy", "torch", "torch._dynamo", "torch.distributed.fsdp",
    "torch.distributed.tensor", "torch.export",
]  # fmt: skip
# transformers reads the variables of the hub, HF_*, when it is imported: who sets them takes a list from above.
TRANSFORMERS = [
    *TORCH, "transformers.modeling_utils", "transformers.loss.loss_utils", "transformers.models.auto.modeling_auto",
    "transformers.models.auto.tokenization_auto", "transformers.models.bert.modeling_bert",
]  # fmt: skip
POLL_S = 0.005
MAX_REQUEST_BYTES, MAX_FDS = 200_000, 4
LEAKED = "nanobind: leaked "  # all that triton writes at the end about objects that were preloaded


class Forked:
    """A command that runs, with what of subprocess.Popen the tests use. Its output is text."""

    def __init__(
        self, server: ForkServer, module: str, arguments: Sequence[str], environment: Mapping[str, str], fds: list[int]
    ) -> None:
        self.args = [module, *arguments]
        self._server = server
        self._folder = Path(tempfile.mkdtemp(dir=server.folder))
        request = {"folder": str(self._folder), "module": module, "arguments": arguments, "env": dict(environment)}
        server.send(request | {"cwd": str(Path.cwd())}, fds)
        self.pid = int(self._read("pid", None))
        self.returncode: int | None = None

    def _read(self, name: str, timeout: float | None) -> str:
        """The content of a file that appears by a rename. Raises subprocess.TimeoutExpired."""
        path, end = self._folder / name, None if timeout is None else time.monotonic() + timeout
        while not path.exists():
            assert self._server.is_there, "the process that is forked has ended"
            if end is not None and time.monotonic() > end:
                raise subprocess.TimeoutExpired(self.args, timeout or 0)
            time.sleep(POLL_S)
        return path.read_text()

    def poll(self) -> int | None:
        if self.returncode is None and (self._folder / "status").exists():
            self.returncode = int(self._read("status", None))
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        self.returncode = int(self._read("status", timeout))
        return self.returncode

    def send_signal(self, signum: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, signum)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """stdout and stderr, when it has ended. One that is over the time is killed, and TimeoutExpired raised."""
        try:
            self.wait(timeout)
        except subprocess.TimeoutExpired:
            self.kill()
            raise
        return (self._folder / "stdout").read_text(), (self._folder / "stderr").read_text().split(LEAKED)[0]


class ForkServer:
    """The process that is forked, until this one ends: its standard input, a socket, closes then."""

    def __init__(self, preload: Sequence[str]) -> None:
        self._made = tempfile.TemporaryDirectory(prefix="forked")
        self.folder = self._made.name
        command = [sys.executable, "-m", "tests.fork_server", *preload]
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(command, stdin=theirs.fileno(), cwd=Path(__file__).parents[1])
        atexit.register(self._made.cleanup)

    @property
    def is_there(self) -> bool:
        return self._process.poll() is None

    def send(self, request: dict[str, Any], fds: list[int]) -> None:
        socket.send_fds(self._socket, [json.dumps(request).encode()], fds)


@cache
def server(preload: tuple[str, ...]) -> ForkServer:
    """One of each kind in a process of pytest, started when it is first asked for."""
    return ForkServer(preload)


def start(
    arguments: Sequence[Any],
    environment: Mapping[str, str],
    module: str = "packhorse",
    preload: Sequence[str] = TRANSFORMERS,
    fds: Sequence[int] = (),
) -> Forked:
    """`python -m MODULE ARGUMENTS FDS`, with what is preloaded imported already. fds: open there by other numbers."""
    return Forked(server(tuple(preload)), module, [str(a) for a in arguments], environment, list(fds))


# -- in the process that is forked


def serve() -> dict[str, Any] | None:
    """Forks for each request; returns it in the process that carries it out, None when there are no more."""
    requests = socket.socket(fileno=0)
    while True:
        message, fds, _, _ = socket.recv_fds(requests, MAX_REQUEST_BYTES, MAX_FDS)
        while _reap() > 0:
            pass
        if not message or os.fork() == 0:
            break
        for descriptor in fds:
            os.close(descriptor)
    requests.detach()
    return _begin(json.loads(message) | {"fds": fds}) if message else None


def _reap() -> int:
    try:
        return os.waitpid(-1, os.WNOHANG)[0]
    except ChildProcessError:
        return 0


def _begin(request: dict[str, Any]) -> dict[str, Any]:
    """Two processes: one waits for the other's end and writes down its status; the other returns."""
    folder = Path(request["folder"])
    pid = os.fork()
    if pid == 0:
        return request
    os.dup2(os.open(os.devnull, os.O_RDWR), 0)
    for descriptor in request["fds"]:
        os.close(descriptor)
    _appear(folder / "pid", pid)
    _appear(folder / "status", os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
    os._exit(0)


def _appear(path: Path, value: int) -> None:
    path.with_suffix(".new").write_text(str(value))
    path.with_suffix(".new").rename(path)


def carry_out(request: dict[str, Any]) -> None:
    """As `python -m` does; SystemExit, errors and the end of the interpreter are left to Python."""
    folder = Path(request["folder"])
    for number, path in enumerate((os.devnull, str(folder / "stdout"), str(folder / "stderr"))):
        os.dup2(os.open(path, os.O_RDWR | os.O_CREAT), number)
    os.environ.clear()
    os.environ.update(request["env"])
    os.chdir(request["cwd"])
    sys.argv = [request["module"], *request["arguments"], *map(str, request["fds"])]
    runpy.run_module(request["module"], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    for name in sys.argv[1:]:
        with suppress(ImportError):  # not every package is everywhere
            import_module(name)
    gc.collect()
    gc.freeze()  # the end of a command would look at each object that is preloaded and free it: 1.4 s
    asked = serve()
    if asked is not None:
        carry_out(asked)
