"""The lock of an output in an object store: one holder at a time, and none that is dead."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any
from uuid import uuid4

import psutil
import pytest

from packhorse.errors import LockedError, OutputError
from packhorse.outputs.stores.lease import Lease, Timing
from packhorse.outputs.stores.puts import Puts, conditional_puts
from packhorse.remote import filesystem
from tests.remote.server import LocalS3, RefusedRequestError

QUICK = Timing(renew_s=0.1, expire_s=1.0, look_s=0.05, settle_s=0.3)
STEADY = Timing(renew_s=60, expire_s=1.0, look_s=0.05, settle_s=0.05)  # never renews by itself
ELSEWHERE = {"host": "elsewhere", "boot": "b", "pids": "p", "pid": 7, "started_s": 1.0, "token": "t", "renewals": 0}


@pytest.fixture(params=["s3", "memory"])
def path(request: pytest.FixtureRequest) -> str:
    """Of a lock, in a store that tells of two who put at once, and in one that does not."""
    root = str(request.getfixturevalue("bucket")) if request.param == "s3" else f"memory://{uuid4().hex}"
    return f"{root}/out/_packhorse/lock"


def puts_for(path: str) -> Puts:
    return conditional_puts(filesystem(path)[0])


def lease(path: str, timing: Timing = QUICK, say: Callable[[str], None] = lambda line: None) -> Lease:
    return Lease(puts_for(path), path, timing, say)


def holder(path: str) -> dict[str, Any]:
    found = puts_for(path).read(path)
    assert found is not None
    value: dict[str, Any] = json.loads(found.data)
    return value


def overwrite(path: str, content: dict[str, Any]) -> None:
    filesystem(path)[0].pipe_file(path, json.dumps(content).encode())


def test_a_second_run_is_refused_with_the_name_of_the_holder(path: str) -> None:
    first = lease(path)
    with pytest.raises(LockedError, match=rf"/out: process {os.getpid()} on .* is working on this output"):
        lease(path)
    first.check()
    first.release()
    lease(path).release()
    assert puts_for(path).read(path) is None


def test_one_that_this_process_failed_to_release_expires(path: str) -> None:
    held = lease(path, STEADY)
    lease(path).release()
    held.release()


def test_it_is_renewed_while_its_holder_lives(path: str) -> None:
    held = lease(path)
    before = holder(path)["renewals"]
    end = time.monotonic() + 20
    while holder(path)["renewals"] < before + 3:
        assert time.monotonic() < end
        time.sleep(0.05)
    held.check()
    held.release()


def test_a_killed_holder_of_this_machine_is_followed_at_once(bucket: Any) -> None:
    path = f"{bucket}/out/_packhorse/lock"
    source = (
        "import os, sys; from tests.remote.test_lease import lease; "
        "lease(sys.argv[1]); os.kill(os.getpid(), 9)"
    )  # fmt: skip
    killed = subprocess.run([sys.executable, "-c", source, path], check=False, timeout=60)
    assert killed.returncode == -signal.SIGKILL and holder(path)["pid"] != os.getpid()
    said: list[str] = []
    lease(path, Timing(expire_s=600), said.append).release()
    assert said == []


def test_a_pid_that_another_process_has_by_now_does_not_hold_it(path: str) -> None:
    held = lease(path, STEADY)
    overwrite(path, holder(path) | {"token": "another", "started_s": 1.0})
    lease(path, Timing(expire_s=60, settle_s=0.05)).release()
    held.release()


def test_a_holder_elsewhere_that_renews_keeps_it(path: str) -> None:
    overwrite(path, ELSEWHERE)
    renewing = threading.Timer(0.4, overwrite, (path, ELSEWHERE | {"renewals": 1}))
    renewing.start()
    said: list[str] = []
    with pytest.raises(LockedError, match="process 7 on elsewhere is working on this output"):
        lease(path, Timing(expire_s=30, look_s=0.05), said.append)
    assert len(said) == 1 and "process 7 on elsewhere" in said[0]


@pytest.mark.parametrize("content", [json.dumps(ELSEWHERE).encode(), b"", b"what is this?"])
def test_a_holder_elsewhere_that_is_silent_for_long_enough_loses_it(path: str, content: bytes) -> None:
    filesystem(path)[0].pipe_file(path, content)
    begin = time.monotonic()
    held = lease(path)
    assert time.monotonic() - begin >= QUICK.expire_s
    assert holder(path)["pid"] == os.getpid()
    held.release()


@pytest.mark.parametrize("is_dead", [False, True])
def test_of_many_that_want_it_at_once_one_gets_it(path: str, is_dead: bool) -> None:
    if is_dead:
        overwrite(path, ELSEWHERE)
    held: list[Lease] = []
    refused: list[str] = []

    def want() -> None:
        try:
            held.append(lease(path))
        except LockedError as error:
            refused.append(str(error))

    threads = [threading.Thread(target=want) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert (len(held), len(refused)) == (1, 5)
    held[0].check()
    held[0].release()


def test_one_that_another_took_is_lost(path: str) -> None:
    held = lease(path, QUICK)
    overwrite(path, ELSEWHERE)
    end = time.monotonic() + 20
    with pytest.raises(LockedError, match="process 7 on elsewhere has taken over this output"):
        while time.monotonic() < end:
            held.check()
            time.sleep(0.02)
    held.release()
    assert holder(path) == ELSEWHERE


def test_a_run_that_was_held_up_asks_before_it_goes_on(path: str) -> None:
    """As one whose machine slept: nothing was renewed, and nothing is known."""
    held = lease(path, STEADY)
    overwrite(path, ELSEWHERE)
    held.check()
    time.sleep(STEADY.expire_s / 2 + 0.1)
    with pytest.raises(LockedError, match="has taken over"):
        held.check()
    held.release()


class Repeating:
    """A file system that puts twice, as a client does whose first answer was lost."""

    def __init__(self, fs: Any) -> None:
        self._fs = fs

    def __getattr__(self, name: str) -> Any:
        return getattr(self._fs, name)

    def pipe_file(self, path: str, data: bytes, **condition: Any) -> Any:
        self._fs.pipe_file(path, data, **condition)
        return self._fs.pipe_file(path, data, **condition)


def test_a_put_that_is_repeated_by_the_client_counts_as_one(path: str) -> None:
    held = Lease(conditional_puts(Repeating(filesystem(path)[0])), path, QUICK, lambda line: None)
    end, before = time.monotonic() + 20, holder(path)["renewals"]
    while holder(path)["renewals"] < before + 3:
        assert time.monotonic() < end
        held.check()
    held.release()


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a process's age is known by the time of day alone")
def test_a_clock_that_is_set_meanwhile_makes_no_holder_dead(bucket: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    path = f"{bucket}/out/_packhorse/lock"
    source = (
        "import sys; from tests.remote.test_lease import *; "
        "held = lease(sys.argv[1], STEADY); print(flush=True); input(); held.release()"
    )  # fmt: skip
    began_s = psutil.Process.create_time
    with subprocess.Popen([sys.executable, "-c", source, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None and child.stdout.readline()
        monkeypatch.setattr(psutil.Process, "create_time", lambda process: began_s(process) + 3_600)
        with pytest.raises(LockedError, match=f"process {child.pid} on .* is working on this output"):
            lease(path)
        child.communicate(b"\n", timeout=60)
    assert puts_for(path).read(path) is None


def test_a_store_that_cannot_be_asked_in_time_is_an_error_with_what_to_do(bucket: Any, server: LocalS3) -> None:
    def refuse(request: dict[str, Any]) -> None:
        raise RefusedRequestError("403 Forbidden", "AccessDenied")

    held = lease(f"{bucket}/out/_packhorse/lock", STEADY)
    server.before = refuse
    time.sleep(STEADY.expire_s / 2 + 0.1)
    with pytest.raises(OutputError, match=f"{bucket}/out: its lock cannot be renewed: no permission.* goes on"):
        held.check()
    server.look_freely()
    held.release()


def test_watching_a_lock_ends_when_the_run_is_stopped(path: str) -> None:
    class StopError(Exception):
        pass

    def stopped(seconds: float) -> None:
        raise StopError

    overwrite(path, ELSEWHERE)
    with pytest.raises(StopError):
        Lease(puts_for(path), path, Timing(expire_s=600), lambda line: None, stopped)
    assert holder(path) == ELSEWHERE
