"""A host that the network takes away in the middle of a job costs what it was computing, and no more."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import packhorse
from tests.cluster.hosts import DEADLINE_S, PORT, SETTINGS, Host, ip, skip_where_not_allowed, start_node, two_hosts
from tests.cluster.test_ray_job import digest, num_records, write_rows
from tests.cpu.command import COMMAND, ENVIRONMENT

SHARDS, SHARD_ROWS = 90, 50
CUT_AFTER = 12  # batches of each host, of which a shard has two to four
# In actors alone: Ray has many other processes with the same environment. A shard takes some 0.3 s.
SLOW = """
import os, sys
if any("default_worker" in part for part in sys.orig_argv):
    import time
    import packhorse.backends.null as null
    checksums = null.NullModel.forward
    def forward(self, batch):
        time.sleep(0.1)
        with open("{folder}/batches-%d" % os.stat("/proc/self/ns/net").st_ino, "a") as file:
            file.write(".")
        return checksums(self, batch)
    null.NullModel.forward = forward
"""


@pytest.fixture
def folder() -> Iterator[Path]:
    """With a short name: a path of a socket has 107 bytes at most."""
    path = Path(tempfile.mkdtemp(prefix="ph-", dir="/tmp"))
    yield path
    shutil.rmtree(path)


@pytest.fixture
def job(null_model: Path, folder: Path) -> dict[str, Any]:
    rows = write_rows(folder / "rows.parquet", SHARDS * SHARD_ROWS, 30)
    more = {"text_column": "text", "tune": "off", "shard_rows": SHARD_ROWS, "max_batch_tokens": 400}
    return {"model": null_model, "input": rows, "backend": "null"} | more


@pytest.fixture
def hosts(folder: Path) -> Iterator[tuple[Host, Host]]:
    """A node on each, with room for one actor. Actors are slow."""
    skip_where_not_allowed()
    (folder / "site").mkdir()
    (folder / "site" / "sitecustomize.py").write_text(SLOW.format(folder=folder))
    path = os.pathsep.join([str(folder / "site"), *sys.path])
    environment = {**ENVIRONMENT, **SETTINGS, "PYTHONPATH": path}
    environment.pop("TMPDIR", None)
    with two_hosts() as (first, second):
        for host in (first, second):
            log = start_node(host, first, environment, folder)
            until(lambda log=log: "Ray runtime started" in log.read_text(), folder)
        yield first, second


def until(is_so: Callable[[], Any], logs: Path) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not is_so():
        assert time.monotonic() < deadline, {log.name: log.read_text()[-2_000:] for log in logs.glob("*.log")}
        time.sleep(0.05)


def num_ready(folder: Path) -> int:
    """Hosts whose actors have given shards back."""
    return sum(file.stat().st_size >= CUT_AFTER for file in folder.glob("batches-*"))


def num_actors(host: Host) -> int:
    return sum(bool(re.match(r"ray::Actor\b", name)) for name in host.names())


@pytest.mark.slow
def test_a_node_that_is_cut_off_does_not_stop_the_job(
    hosts: tuple[Host, Host], job: dict[str, Any], folder: Path
) -> None:
    first, second = hosts
    packhorse.run(**job, output=folder / "one")
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in job.items() if name not in ("model", "input")]
    cluster = ["--ray", f"{first.address}:{PORT}", "--ray-workers", "2"]
    out, log = folder / "out", folder / "job.log"
    command = [*COMMAND, "run", str(job["model"]), str(job["input"]), "-o", str(out), *flags, *cluster]
    running = first.start(command, {**ENVIRONMENT, **SETTINGS}, log)
    until(lambda: running.poll() is not None or num_ready(folder) == 2, folder)
    assert running.poll() is None and num_records(out) < SHARDS - 20, log.read_text()
    second.cut_off()
    assert running.wait(DEADLINE_S) == 0, log.read_text()
    assert num_actors(second), "it was to be cut off, not killed"
    assert digest(out) == digest(folder / "one") and packhorse.verify(out).rows == SHARDS * SHARD_ROWS
    workers = json.loads((out / "_packhorse" / "report.json").read_text())["workers"]
    assert all(worker["shards"] > 0 for worker in workers) and sum(w["shards"] for w in workers) == SHARDS
    assert "Traceback" not in log.read_text()


def test_nothing_of_the_hosts_is_left(folder: Path) -> None:
    skip_where_not_allowed()
    with two_hosts() as hosts:
        for host in hosts:
            host.start([sys.executable, "-c", "import time; time.sleep(600)"], dict(os.environ), folder / "log")
        until(lambda: all(host.names() for host in hosts), folder)
        first, second = hosts
        there = [*COMMAND[:1], "-c", f"import socket; socket.create_server(('{second.address}', 80)).accept()"]
        second.start(there, dict(os.environ), folder / "log")
        reach = f"import socket; socket.create_connection(('{second.address}', 80), 5)"
        until(lambda: first.start([*COMMAND[:1], "-c", reach], dict(os.environ), folder / "log").wait() == 0, folder)
    assert not [name for host in hosts for name in (host.name, host.link) if name in ip("netns") + ip("link")]
    assert not [process for host in hosts for process in host.started if process.poll() is None]
