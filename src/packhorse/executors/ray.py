"""Worker processes of a job on a Ray cluster: each an actor, which the coordinator speaks with as with any other.

Ray says where an actor runs, and that it is gone; it is started anew wherever there is room. All else is that of
processes.py: the coordinator reads, cuts and hands out shards, and commits them in order, so that the manifest alone
decides what is done. Ray Data has no part in it: its blocks are none of our shards, an order over all of them costs it
a barrier, and a block computed twice is no different to it from one computed once. For pipelines of Ray Data there is
packhorse.integrations.ray.

Of the rows only the columns that the model needs travel, as Arrow IPC through Ray's object store; at most four
shards a worker and four more are held by the driver, whatever the input's size.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from multiprocessing import Pipe
from typing import Any, cast

from packhorse.errors import UsageError, first_line
from packhorse.executors.process import WorkerGoneError, WorkerProcess
from packhorse.executors.processes import Processes
from packhorse.executors.wire import Message, Wire, WireClosedError
from packhorse.executors.worker import Inbox, serve

LOCAL = "local"
LOCAL_STORE_BYTES = 512 << 20  # of the object store of --ray local; what is beyond it goes to a disk
TAKE_S = 5.0  # a call that asks for messages waits so long for the first
CALLS = 4  # of an actor at the same time: one takes, the others put
ROOM_S = 1_800.0  # that the cluster is given to find, or to start, a node for an actor
SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextlib.contextmanager
def connected(address: str, num_cpus: int) -> Iterator[Any]:
    """The module ray, connected to a cluster; one of this machine alone, with so many cores, where it says "local".
    A connection that the process has already is used as it is.

    Raises UsageError where ray is missing, or there is no cluster at the address.
    """
    try:
        import ray
    except ModuleNotFoundError:
        raise UsageError(f"--ray {address}: ray is not installed; `pip install 'packhorse[ray]'` brings it") from None
    is_ours = not ray.is_initialized()
    if is_ours:
        _connect(ray, address, num_cpus)
    try:
        yield ray
    finally:
        if is_ours:
            ray.shutdown()


def _connect(ray: Any, address: str, num_cpus: int) -> None:
    of_local = {"num_cpus": num_cpus, "object_store_memory": LOCAL_STORE_BYTES, "include_dashboard": False}
    if address == LOCAL:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    own = [(signum, signal.getsignal(signum)) for signum in SIGNALS]
    try:
        ray.init(
            address, log_to_driver=False, logging_level="ERROR", **(of_local if address == LOCAL else {}),
        )  # fmt: skip
    except (ConnectionError, ValueError) as error:
        raise UsageError(f"--ray {address}: no cluster there: {error}; legal are local, auto and HOST:PORT") from error
    finally:
        if threading.current_thread() is threading.main_thread():  # Ray puts its own in their place
            for signum, handler in own:
                signal.signal(signum, handler)


class Actor:
    """The process of a worker. What passes through put() and take() are the frames of a Wire."""

    def __init__(self, module: str) -> None:
        """module: its load() makes the stages."""
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
        self._ours, theirs = Pipe()
        self._early: dict[int, bytes] = {}
        self._next, self._putting = 0, threading.Lock()
        wire, load = Wire(theirs), importlib.import_module(module).load
        self._serving = threading.Thread(target=serve, args=(wire, Inbox(wire), load), daemon=True)
        self._serving.start()

    def put(self, number: int, frame: bytes) -> None:
        """Frames may come in another order than they were sent in; their numbers tell it."""
        with self._putting:
            self._early[number] = frame
            while self._next in self._early:
                self._ours.send_bytes(self._early.pop(self._next))
                self._next += 1

    def take(self) -> list[bytes]:
        """The frames that there are; waits a while for the first."""
        frames: list[bytes] = []
        while self._ours.poll(0 if frames else TAKE_S):
            frames.append(self._ours.recv_bytes())
        return frames

    def join(self) -> None:
        """Waits until the model is closed."""
        self._serving.join()


class ActorPipe:
    """The coordinator's end, with what Wire uses of a multiprocessing Connection. Raises EOFError where the actor is
    gone, for which `how` has the reason."""

    def __init__(self, ray: Any, actor: Any) -> None:
        self._ray, self._actor, self.how = ray, actor, "is gone"
        self._num_sent = 0
        self._frames: deque[bytes] = deque()
        self._taking = actor.take.remote()

    def send_bytes(self, frame: Any) -> None:
        """Does not wait; an actor that is gone is found out by poll()."""
        self._actor.put.remote(self._num_sent, bytes(frame))
        self._num_sent += 1

    def poll(self, timeout_s: float | None = None) -> bool:
        end_s = None if timeout_s is None else time.monotonic() + timeout_s
        while not self._frames:
            left_s = None if end_s is None else max(end_s - time.monotonic(), 0)
            ready, _ = self._ray.wait([self._taking], timeout=left_s)
            if not ready:
                return False
            self._frames.extend(self._taken())
        return True

    def recv_bytes(self) -> bytes:
        self.poll()
        return self._frames.popleft()

    def close(self) -> None:
        self._frames.clear()

    def _taken(self) -> list[bytes]:
        try:
            frames: list[bytes] = self._ray.get(self._taking)
        except self._ray.exceptions.RayError as error:
            self.how = f"is gone: {first_line(error)}"
            raise EOFError(self.how) from None
        self._taking = self._actor.take.remote()
        return frames


class RayWorker(WorkerProcess):
    """A worker that is an actor."""

    def __init__(self, ray: Any, module: str, device: str, spec: Any, needs: dict[str, float]) -> None:
        """needs: num_cpus and num_gpus."""
        super().__init__(module, device, spec)
        self._ray, self._needs = ray, needs

    def start(self) -> None:
        """A new actor; it waits for room in the cluster, which may grow for it."""
        self.facts = None
        self._began_s = time.monotonic()
        options = {"max_restarts": 0, "max_task_retries": 0, "max_concurrency": CALLS} | self._needs
        self._actor = self._ray.remote(Actor).options(**options).remote(self._module)
        self._has_room = self._actor.__ray_ready__.remote()
        self._pipe = ActorPipe(self._ray, self._actor)
        self.wire = Wire(cast(Any, self._pipe))
        self.send("load", self._spec)

    def receive(self, timeout_s: float) -> Message | None:
        """As of a process. Raises WorkerGoneError too where the cluster has no room for it in half an hour."""
        try:
            message = self.wire.receive(timeout_s)
        except WireClosedError:
            raise WorkerGoneError(self._pipe.how) from None
        if message is None and self.facts is None and time.monotonic() - self._began_s > ROOM_S:
            self._check_room()
        return None if message is None else self.heard(message)

    def _check_room(self) -> None:
        if not self._ray.wait([self._has_room], timeout=0)[0]:
            raise WorkerGoneError(f"found no room for {self._needs} in {ROOM_S / 60:.0f} minutes")

    def kill(self) -> None:
        """At once."""
        self._ray.kill(self._actor)
        self.wire.close()

    def close(self, deadline_s: float) -> None:
        """The model is closed; at that time of time.monotonic() the actor is killed."""
        self._ray.wait([self._actor.join.remote()], timeout=max(deadline_s - time.monotonic(), 0))
        self.kill()


class RayActors(Processes):
    """An Executor: an actor for each device. Those that find no room yet join once they do; the run begins with the
    first."""

    def __init__(
        self, ray: Any, actor_needs: dict[str, float], module: str, devices: Sequence[str], specs: Sequence[Any],
        needs: Sequence[str], keep: Sequence[str], say: Callable[[str], None], check: Callable[[], None],
        one_first: bool = False,
    ) -> None:  # fmt: skip
        """actor_needs: num_cpus and num_gpus of one. The rest as of Processes."""
        self._ray, self._actor_needs = ray, actor_needs
        super().__init__(module, devices, specs, needs, keep, say, check, one_first)

    def new_worker(self, module: str, device: str, spec: Any) -> WorkerProcess:
        return RayWorker(self._ray, module, device, spec, self._actor_needs)
