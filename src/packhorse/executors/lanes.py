"""Three lanes joined by bounded queues; what fails in one ends all of them, promptly, with its own message."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

T = TypeVar("T")


class LaneStoppedError(Exception):
    """Another lane failed: this one has nothing more to do."""


class Breaker:
    """Shared by the lanes of one run: the first error, and the condition on which all of them wait."""

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.error: BaseException | None = None

    def trip(self, error: BaseException) -> None:
        with self.changed:
            if self.error is None and not isinstance(error, LaneStoppedError):
                self.error = error
            self.changed.notify_all()

    def check(self) -> None:
        if self.error is not None:
            raise LaneStoppedError


class Channel(Generic[T]):
    """A bounded queue between two lanes. `waited_s` is what its consumer, `blocked_s` what its producer waited."""

    def __init__(self, breaker: Breaker, size: int) -> None:
        self._breaker, self._size = breaker, size
        self._items: deque[T] = deque()
        self._is_closed = self._is_abandoned = False
        self.waited_s = self.blocked_s = 0.0

    def put(self, item: T) -> None:
        begin = time.perf_counter()
        with self._breaker.changed:
            self._wait_for(lambda: len(self._items) < self._size or self._is_abandoned)
            if not self._is_abandoned:
                self._items.append(item)
            self._breaker.changed.notify_all()
        self.blocked_s += time.perf_counter() - begin

    def close(self) -> None:
        """No more items will come."""
        with self._breaker.changed:
            self._is_closed = True
            self._breaker.changed.notify_all()

    def abandon(self) -> None:
        """Nobody consumes any more: what waits here is dropped, and so is what comes."""
        with self._breaker.changed:
            self._is_abandoned = True
            self._items.clear()
            self._breaker.changed.notify_all()

    def __iter__(self) -> Iterator[T]:
        while True:
            begin = time.perf_counter()
            with self._breaker.changed:
                self._wait_for(lambda: bool(self._items) or self._is_closed)
                self.waited_s += time.perf_counter() - begin
                if not self._items:
                    return
                item = self._items.popleft()
                self._breaker.changed.notify_all()
            yield item

    def _wait_for(self, ready: Callable[[], bool]) -> None:
        self._breaker.changed.wait_for(lambda: self._breaker.error is not None or ready())
        self._breaker.check()


class Lane(threading.Thread):
    """A thread that trips the breaker with whatever it raises."""

    def __init__(self, name: str, breaker: Breaker, work: Callable[[], None]) -> None:
        super().__init__(name=name, daemon=True)
        self._breaker, self._work = breaker, work

    def run(self) -> None:
        try:
            self._work()
        except BaseException as error:  # noqa: BLE001 - handed to the main lane, which raises it
            self._breaker.trip(error)
