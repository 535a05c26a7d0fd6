"""One rank: `python -m packhorse.backends.torch.parallel.rank FD`, started by packhorse's process.

It ends as soon as the pipe to that process is closed, whatever it is doing then and however that process ended.
"""

from __future__ import annotations

import os
import queue
import signal
import sys
import threading
import zlib
from collections import deque
from collections.abc import Callable
from functools import partial
from multiprocessing.connection import Connection
from typing import Any

from packhorse.backends.torch.parallel.messages import ORPHANED, Facts, Spec, failure
from packhorse.data import Batch
from packhorse.generation import Generated, Prompts
from packhorse.stages import Generator, LoadedModel

MODULE = __name__ if __name__ != "__main__" else "packhorse.backends.torch.parallel.rank"
SIGNALS = (signal.SIGINT, signal.SIGTERM)  # Ctrl-C reaches the whole process group: packhorse's process acts on it
OF_VALUES = ("reduction", "pads_safely", "max_length", "attention", "is_packed", "in_flight")
OF_WRITING = ("reduction", "max_length", "max_new_tokens", "is_sampled", "attention", "engine")


class StoppedError(Exception):
    """packhorse's process wants no further step."""


class Line:
    """To packhorse's process. A thread of its own listens, so that the other end's closing is always heard."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._inbox: queue.SimpleQueue[tuple[str, Any]] = queue.SimpleQueue()
        threading.Thread(target=self._listen, name="inbox", daemon=True).start()

    def _listen(self) -> None:
        while True:
            try:
                self._inbox.put(self._connection.recv())
            except (EOFError, OSError):
                os._exit(ORPHANED)

    def send(self, kind: str, values: Any = None) -> None:
        try:
            self._connection.send((kind, values))
        except OSError:
            os._exit(ORPHANED)

    def next(self) -> tuple[str, Any]:
        return self._inbox.get()

    @property
    def is_quiet(self) -> bool:
        return self._inbox.empty()

    def wait_for_all(self) -> None:
        """Raises StoppedError where nobody is to go on."""
        if self.next()[0] != "go":
            raise StoppedError


class Rank:
    def __init__(self, line: Line, spec: Spec) -> None:
        """Meets the others and loads its share. Raises what loading raises."""
        from packhorse.backends.torch.parallel import group

        self._line, self._is_first = line, spec.rank == 0
        if self._is_first:
            store, port = group.listen()
            line.send("meet", port)
        else:
            store = group.reach(line.next()[1])
        self.group = group.Group(spec, store)
        self._model: LoadedModel | Generator = self._loaded(spec)
        self._pending: deque[Callable[[], Any]] = deque()

    def _loaded(self, spec: Spec) -> LoadedModel | Generator:
        """The first collectives come once all ranks have their weights, however long one of them took."""
        request = spec.request
        if request.decoding is None:
            from packhorse.backends.torch.model import TorchModel

            return TorchModel(request, self._share)
        from packhorse.backends.torch import load_tokenizer
        from packhorse.backends.torch.generation.model import TorchGenerator

        return TorchGenerator(request, load_tokenizer(request.description).backend, self._share)

    def _share(self, model: Any, generates: bool) -> None:
        """Of weights that were just read."""
        self.group.agree(model, body_too=not generates)
        self._line.send("loaded")
        self._line.wait_for_all()

    def facts(self) -> Facts:
        model = self._model
        names = OF_WRITING if hasattr(model, "generate") else OF_VALUES
        told = {name: getattr(model, name) for name in names}
        return Facts(told, model.cost, model.weight_bytes, tuple(model.notes))

    # -- calls

    def serve(self) -> None:
        """Until packhorse's process says close."""
        while True:
            kind, values = self._line.next()
            if kind == "close":
                return
            if kind in ("go", "stop"):  # of a step that this rank did not come to
                continue
            if kind == "forward":
                self._pending.append(self._begun(values))
            else:
                self._flush(0)
                work: Callable[[Any], Any] = {"generate": self._generate, "peak": self._peak}[kind]
                self._answer(partial(work, values))
            self._flush(0 if self._line.is_quiet else getattr(self._model, "in_flight", 0))

    def _flush(self, most: int) -> None:
        """Answers the oldest forwards, until so many are under way."""
        while len(self._pending) > most:
            self._answer(self._pending.popleft())

    def _answer(self, work: Callable[[], Any]) -> None:
        try:
            self._line.send("done", work())
        except StoppedError:
            self._line.send("stopped")
        except Exception as error:  # noqa: BLE001 - raised by packhorse's process
            self._line.send("failed", failure(error, self.group.at_rest()))

    def _begun(self, batch: Batch) -> Callable[[], Any]:
        """The forward has begun; what is returned waits for its values."""
        model: Any = self._model
        try:
            output = model.forward(batch)
        except Exception as error:  # noqa: BLE001 - answered in its turn
            return partial(_raise, error)

        def values() -> Any:
            found = output.numpy()
            return (found, getattr(output, "transfers", None)) if self._is_first else None

        return values

    def _generate(self, values: tuple[Prompts, int, int]) -> Any:
        model: Any = self._model
        generated: Generated = model.generate(*values, self._step)
        checksum = zlib.crc32(generated.ids.tobytes())
        return checksum, (generated, tuple(model.notes)) if self._is_first else None

    def _step(self, finished: int, tokens: int) -> None:
        if self._is_first:
            self._line.send("step", (finished, tokens))
        self._line.wait_for_all()

    def _peak(self, _: Any) -> int | None:
        return self._model.peak_bytes()


def _raise(error: Exception) -> Any:
    raise error


def main() -> None:
    descriptor = int(sys.argv[1])
    os.set_inheritable(descriptor, False)
    for signum in SIGNALS:  # a handler, and not SIG_IGN, since processes of ours would inherit that
        signal.signal(signum, lambda *_: None)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    line = Line(Connection(descriptor))
    try:
        rank = Rank(line, line.next()[1])
        line.send("ready", rank.facts())
        rank.serve()
    except BaseException as error:  # noqa: BLE001 - raised by packhorse's process, which then ends this one
        line.send("failed", failure(error, None))
        line.next()
    os._exit(0)  # frees all that it holds; to part from the others in order takes their part


if __name__ == "__main__":
    # Messages name this module's types; the one that runs as __main__ has others of the same names.
    from packhorse.backends.torch.parallel.rank import main as run

    run()
