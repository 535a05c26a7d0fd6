"""All ranks of a model: started together, told the same, ended together."""

from __future__ import annotations

import contextlib
import dataclasses
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from multiprocessing.connection import wait
from typing import Any

from packhorse.backends.torch.parallel.messages import Facts, Failure, Spec
from packhorse.backends.torch.parallel.process import END_S, GoneError, RankProcess
from packhorse.errors import DeviceOutOfMemoryError, ModelError, WorkerDiedError
from packhorse.load_request import LoadRequest
from packhorse.stages import OnStep

LOOK_S = 0.2  # in which a signal's handler gets its turn while the ranks are waited for
# Between the first rank's answer to a call and the last one's: they end it together, but for what each has to copy.
GRACE_S = 10.0

Answer = tuple[str, Any]


class Ranks:
    """Used from any thread, by one at a time. After an error that left the ranks at different places they are ended,
    and the next call starts them anew."""

    def __init__(self, request: LoadRequest) -> None:
        """Starts a process for each of request.placement.devices and waits until the model is loaded. Raises what
        loading raises, and WorkerDiedError."""
        self._request, self._lock = request, threading.RLock()
        self._processes: list[RankProcess] = []
        self._open: deque[Ticket] = deque()  # told and not answered by all ranks, the oldest first
        self.facts: Facts = self._start()

    # -- calls

    def submit(self, kind: str, values: Any) -> Ticket:
        """Tells all ranks; their answers are collected later, in the order in which they were told. A call that was
        under way when the ranks had to be ended raises DeviceOutOfMemoryError: it is to be made again."""
        with self._lock:
            if not self._processes:
                self._start()
            ticket = Ticket(self)
            self._open.append(ticket)
            with self._in_step():
                self._tell(kind, values)
            return ticket

    def call(self, kind: str, values: Any, on_step: OnStep | None = None) -> list[Any]:
        """What each rank answers, the first one's first. on_step is called at each step of all ranks, and may raise:
        they stop, and it is raised again."""
        with self._lock:
            return self.collect(self.submit(kind, values), on_step)

    def collect(self, ticket: Ticket, on_step: OnStep | None = None) -> list[Any]:
        """Raises what the ranks raised, and WorkerDiedError where one ended."""
        with self._lock:
            stopped: list[BaseException] = []
            with self._in_step():
                while ticket.lost is None and len(ticket.answers) < len(self._processes):
                    self._receive(on_step, stopped)
            if stopped and all(kind == "stopped" for kind, _ in ticket.answers.values()):
                raise stopped[0]
            return self._judged(ticket)

    def close(self) -> None:
        with self._lock:
            processes, self._processes = self._processes, []
            for process in processes:
                _send_last(process)
            deadline_s = time.monotonic() + END_S
            for process in processes:
                process.end(max(deadline_s - time.monotonic(), 0.0))

    def kill(self) -> None:
        """All at once: what is under way is lost."""
        processes, self._processes = self._processes, []
        for process in processes:
            process.end()
        for ticket in self._open:
            ticket.lost = DeviceOutOfMemoryError("the processes of --tensor-parallel were ended meanwhile")
        self._open = deque()

    @property
    def pids(self) -> list[int]:
        return [process.pid for process in self._processes]

    # -- starting

    def _start(self) -> Facts:
        devices = self._request.placement.devices
        with self._in_step():
            for rank in range(len(devices)):
                self._processes.append(RankProcess(rank, devices[rank]))
            for process in self._processes:
                process.send("load", _spec(self._request, process.rank))
            port = self._all("meet", self._processes[:1])[0]
            for process in self._processes[1:]:
                process.send("meet", port)
            self._all("loaded", self._processes)
            self._tell("go")
            return _common(self._all("ready", self._processes))

    def _all(self, kind: str, processes: Sequence[RankProcess]) -> list[Any]:
        """What they say next, all of this kind. Raises what a rank raised, and GoneError."""
        found: dict[int, Any] = {}
        while len(found) < len(processes):
            for process in self._heard():
                said, values = process.receive()
                if said == "failed":
                    self._notice_dead(process)
                    raise _noted(values)
                assert said == kind, (said, kind)
                found[process.rank] = values
        return [found[process.rank] for process in processes]

    def _notice_dead(self, failed: RankProcess) -> None:
        """A rank that hears no more of another fails too, and may be heard before that one's end. Raises GoneError."""
        deadline_s, failures = time.monotonic() + END_S, {failed.rank}
        while len(failures) < len(self._processes) and time.monotonic() < deadline_s:
            failures |= {process.rank for process in self._heard() if process.receive()[0] == "failed"}

    # -- answers

    def _tell(self, kind: str, values: Any = None) -> None:
        for process in self._processes:
            process.send(kind, values)

    def _heard(self) -> list[RankProcess]:
        """Ranks that said something, or ended; none where nothing came for a moment."""
        by_pipe = {process.connection: process for process in self._processes}
        return [by_pipe[ready] for ready in wait(list(by_pipe), LOOK_S)]  # type: ignore[index]

    def _receive(self, on_step: OnStep | None, stopped: list[BaseException]) -> None:
        for process in self._heard():
            kind, values = process.receive()
            if kind == "step":
                self._tell(_asked(on_step, values, stopped))
                continue
            mine = next(t for t in self._open if process.rank not in t.answers)
            mine.answer(process.rank, (kind, values))
            if len(mine.answers) == len(self._processes):
                self._open.remove(mine)
        first_s = self._open[0].first_s if self._open else None
        if first_s is not None and time.monotonic() - first_s > GRACE_S:
            self._part(self._open[0])

    def _part(self, ticket: Ticket) -> None:
        """Some ranks have answered, and others do not: they wait for what never comes. Raises."""
        failures = [values for kind, values in ticket.answers.values() if kind == "failed"]
        if failures:
            raise _noted(failures[0])
        silent = [p.device for p in self._processes if p.rank not in ticket.answers]
        raise WorkerDiedError(f"--tensor-parallel: {', '.join(silent)} did not answer within {GRACE_S:.0f} s")

    def _judged(self, ticket: Ticket) -> list[Any]:
        """Of a call that all ranks have answered. Raises what they raised."""
        if ticket.lost is not None:
            raise ticket.lost
        answers = [ticket.answers[rank] for rank in sorted(ticket.answers)]
        failures = [values for kind, values in answers if kind == "failed"]
        if not failures:
            return [values for _, values in answers]
        if len(failures) < len(answers) or not _at_one_place(failures):
            self.kill()
        raise _noted(failures[0])

    @contextlib.contextmanager
    def _in_step(self) -> Iterator[None]:
        """Whatever is raised inside leaves the ranks at different places: they are ended. Raises WorkerDiedError where
        one had ended by itself."""
        try:
            yield
        except GoneError as gone:
            self.kill()
            raise WorkerDiedError(
                f"--tensor-parallel: {gone}; the others were ended too. What was committed stays: the same command "
                "goes on there"
            ) from None
        except BaseException:
            self.kill()
            raise


class Ticket:
    """A call that the ranks were told of. answers: by rank. lost: why none will come."""

    def __init__(self, ranks: Ranks) -> None:
        self._ranks = ranks
        self.answers: dict[int, Answer] = {}
        self.lost: Exception | None = None
        self.first_s: float | None = None

    def answer(self, rank: int, answer: Answer) -> None:
        self.answers[rank] = answer
        self.first_s = time.monotonic() if self.first_s is None else self.first_s

    def collect(self) -> list[Any]:
        return self._ranks.collect(self)


def _spec(request: LoadRequest, rank: int) -> Spec:
    """Ranks on one processor share its threads."""
    devices = request.placement.devices
    threads = max(request.threads // len(devices), 1)
    own = dataclasses.replace(request, device=devices[rank], threads=threads, model_key=_no_key)
    return Spec(own, rank, len(devices))


def _no_key() -> str:
    raise AssertionError("a rank keeps nothing that it would have to find again by the model's key")


def _common(facts: Sequence[Facts]) -> Facts:
    """Raises ModelError where ranks found different things: they could not go on together."""
    first = facts[0]
    for other in facts[1:]:
        different = [name for name, value in first.told.items() if other.told[name] != value]
        if different:
            name = different[0]
            raise ModelError(
                f"--tensor-parallel: the ranks differ in {name}: {first.told[name]}, {other.told[name]}; are the "
                "devices of one kind?"
            )
    return first._replace(weight_bytes=sum(f.weight_bytes for f in facts))


def _asked(on_step: OnStep | None, values: tuple[int, int], stopped: list[BaseException]) -> str:
    """What all ranks are told after a step."""
    try:
        if on_step is not None and not stopped:
            on_step(*values)
    except BaseException as error:  # noqa: BLE001 - raised again once all ranks have stopped
        stopped.append(error)
    return "stop" if stopped else "go"


def _at_one_place(failures: Sequence[Failure]) -> bool:
    """Whether all ranks raised the same after the same outputs, and none waits for another."""
    kinds = {(type(failure.error), failure.num_agreed) for failure in failures}
    return len(kinds) == 1 and failures[0].num_agreed is not None


def _noted(failure: Failure) -> Exception:
    failure.error.add_note(f"in a rank of --tensor-parallel:\n{failure.where}")
    return failure.error


def _send_last(process: RankProcess) -> None:
    """Where it is gone already, that is what was wanted."""
    try:
        process.send("close")
    except GoneError:
        return
