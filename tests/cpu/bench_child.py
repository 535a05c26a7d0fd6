"""A contender's process, forked, whose own command `packhorse run` is a fork again: 7 s less than from nothing."""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import IO

from packhorse.comparison import child
from packhorse.comparison.contenders import packhorse as contender

POLL_S = 0.005


class Command:
    """With what of subprocess.Popen the contender uses."""

    def __init__(self, arguments: list[str], stdout: IO[bytes], stderr: int) -> None:
        assert arguments[:3] == [sys.executable, "-m", "packhorse"] and stderr == subprocess.STDOUT
        self.args = arguments
        self.returncode: int | None = None
        sys.stdout.flush()
        self.pid = os.fork()
        if self.pid == 0:
            for descriptor in (1, 2):
                os.dup2(stdout.fileno(), descriptor)
            sys.argv = ["packhorse", *arguments[3:]]
            runpy.run_module("packhorse", run_name="__main__", alter_sys=True)
            sys.exit()

    def poll(self) -> int | None:
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.returncode = os.waitstatus_to_exitcode(status) if pid else None
        return self.returncode

    def wait(self, timeout: float) -> int:
        end = time.monotonic() + timeout
        while (status := self.poll()) is None:
            if time.monotonic() > end:
                raise subprocess.TimeoutExpired(self.args, timeout)
            time.sleep(POLL_S)
        return status


if __name__ == "__main__":
    used = {"Popen": Command, "STDOUT": subprocess.STDOUT, "TimeoutExpired": subprocess.TimeoutExpired}
    contender.subprocess = SimpleNamespace(**used)  # type: ignore[assignment, attr-defined]
    child.main(Path(sys.argv[1]))
