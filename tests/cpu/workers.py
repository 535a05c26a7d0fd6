"""Processes of --devices and --tensor-parallel as forks: 6 s less each. Starting workers from nothing:
tests/null/test_devices.py."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from tests import fork_server


@contextmanager
def forked_workers(module: ModuleType) -> Iterator[None]:
    """What the module starts with subprocess.Popen. At the end no process of them is left."""
    started: list[fork_server.Forked] = []

    def start(command: Sequence[str], *, pass_fds: Sequence[int], env: Mapping[str, str], **_: Any) -> Any:
        name = command[command.index("-m") + 1]
        assert [*map(str, pass_fds)] == command[command.index("-m") + 2 :]
        started.append(fork_server.start([], env, name, fds=pass_fds))
        return started[-1]

    with pytest.MonkeyPatch.context() as patch:
        names = {"Popen": start, "TimeoutExpired": subprocess.TimeoutExpired, "DEVNULL": subprocess.DEVNULL}
        patch.setattr(module, "subprocess", SimpleNamespace(**names))
        yield
    assert all(process.poll() is not None for process in started)
