"""Two hosts on this machine: network namespaces with a link between them, and one node of a Ray cluster in each."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import psutil
import pytest

from packhorse.devices.host import num_cores

DEADLINE_S = 120.0  # until a node is there
NETWORK = "10.231.7"  # nobody else's: it is seen within the two namespaces only
PORT = 6_379
STORE_BYTES = 100 << 20
RAY_OF_COMMAND_LINE = [sys.executable, "-m", "ray.scripts.scripts"]
# A node that does not answer is given up after 4 looks of at most 2 s, instead of half a minute.
SETTINGS = {
    "RAY_health_check_initial_delay_ms": "5000", "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "2000", "RAY_health_check_failure_threshold": "4", "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AUTH_MODE": "disabled", "PYTHONUNBUFFERED": "1", "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE",
}  # fmt: skip


class Host:
    """A namespace. Its link is up until it is cut."""

    def __init__(self, number: int) -> None:
        self.name = f"ph{os.getpid()}-{number}"
        self.link, self.address = f"phv{os.getpid()}-{number}", f"{NETWORK}.{number}"
        self.started: list[subprocess.Popen[bytes]] = []

    def start(self, command: Sequence[str], environment: dict[str, str], log: Path) -> subprocess.Popen[bytes]:
        with log.open("wb") as file:
            process = subprocess.Popen(
                ["ip", "netns", "exec", self.name, *command], env=environment, stdin=subprocess.DEVNULL, stdout=file,
                stderr=subprocess.STDOUT,
            )  # fmt: skip
        self.started.append(process)
        return process

    def processes(self) -> list[psutil.Process]:
        """All that run in the namespace, whoever started them."""
        found = []
        for pid in ip("netns", "pids", self.name).split():
            with contextlib.suppress(psutil.NoSuchProcess):
                found.append(psutil.Process(int(pid)))
        return found

    def names(self) -> list[str]:
        """Of its processes, with their arguments."""
        found = []
        for process in self.processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                found.append(" ".join(process.cmdline()))
        return found

    def cut_off(self) -> None:
        ip("-n", self.name, "link", "set", self.link, "down")

    def remove(self) -> None:
        """With all processes in it."""
        deadline = time.monotonic() + DEADLINE_S
        while left := self.processes():
            assert time.monotonic() < deadline, left
            for process in left:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            psutil.wait_procs(left, timeout=1)
            for mine in self.started:
                mine.poll()
        for mine in self.started:
            mine.wait()
        ip("netns", "del", self.name)  # its end of the link goes with it


def ip(*arguments: str) -> str:
    return subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True, timeout=20).stdout


def skip_where_not_allowed() -> None:
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("network namespaces need root and the command ip of iproute2")
    name = f"ph{os.getpid()}-may"
    try:
        ip("netns", "add", name)
        ip("netns", "exec", name, "ip", "link", "add", "phmay", "type", "veth", "peer", "name", "phyes")
    except subprocess.CalledProcessError as refused:
        pytest.skip(f"network namespaces are not allowed here: {refused.stderr.strip()}")
    finally:
        subprocess.run(["ip", "netns", "del", name], capture_output=True)


@contextlib.contextmanager
def two_hosts() -> Iterator[tuple[Host, Host]]:
    hosts = first, second = Host(1), Host(2)
    with contextlib.ExitStack() as made:
        for host in hosts:
            ip("netns", "add", host.name)
            made.callback(host.remove)
        ip("-n", first.name, "link", "add", first.link, "type", "veth", "peer", second.link, "netns", second.name)
        for host in hosts:
            ip("-n", host.name, "address", "add", f"{host.address}/24", "dev", host.link)
            for link in ("lo", host.link):
                ip("-n", host.name, "link", "set", link, "up")
        yield hosts


def start_node(host: Host, head: Host, environment: dict[str, str], folder: Path) -> Path:
    """A node with room for one actor of a CPU's plan; the file with what it says. Does not wait until it is there."""
    where = ["--head", "--port", str(PORT), "--include-dashboard", "false"] if host is head else []
    where = where or ["--address", f"{head.address}:{PORT}"]
    what = [
        "--num-cpus",
        str(num_cores()),
        "--object-store-memory",
        str(STORE_BYTES),
        "--temp-dir",
        str(folder / host.name[-1]),
    ]
    log = folder / f"{host.name}.log"
    command = [*RAY_OF_COMMAND_LINE, "start", *where, *what, "--node-ip-address", host.address, "--block"]
    host.start(command, environment, log)
    return log
