"""The commits of a run, several at the same time where the store takes its time over each."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

from packhorse.outputs.manifest import RunFolder
from packhorse.outputs.records import Commit

MAX_BYTES = 256 << 20  # of parts that are put at the same time, a larger one alone: s3fs holds small ones in memory


class _Begun(NamedTuple):
    """A commit that is under way. then: what is to be done once it is final."""

    future: Future[None]
    num_bytes: int
    then: Callable[[], None]


class Committing:
    """Makes parts final, each before its own record, and tells of them in the order in which they were added.

    The parts of several shards are put at the same time, and a record does not wait for those of earlier shards. So a
    run that is killed can leave records behind a gap. Nobody reads them: RunFolder.commits ends at the gap, and the run
    that goes on drops them first (drop_records_after), and computes their shards again to the same bytes.
    """

    def __init__(self, folder: RunFolder) -> None:
        self._folder = folder
        self._at_once = folder.store.commits_at_once
        self._pool = ThreadPoolExecutor(self._at_once, "commit") if self._at_once > 1 else None
        self._begun: deque[_Begun] = deque()

    def add(self, commit: Commit, temporaries: Mapping[str, Path], then: Callable[[], None]) -> None:
        """Waits until it has room for one more. Raises what an earlier commit, or its `then`, raised."""
        if self._pool is None:
            self._folder.make_final(commit, temporaries)
            then()
            return
        num_bytes = sum(file.num_bytes for file in commit.files)
        while self._is_full(num_bytes):
            self._end_first()
        future = self._pool.submit(self._folder.make_final, commit, temporaries)
        self._begun.append(_Begun(future, num_bytes, then))
        while self._begun and self._begun[0].future.done():
            self._end_first()

    def end(self) -> None:
        """Waits for all of them. Raises what one of them raised."""
        while self._begun:
            self._end_first()

    def _is_full(self, num_bytes: int) -> bool:
        if not self._begun:
            return False
        return (
            len(self._begun) >= self._at_once or sum(begun.num_bytes for begun in self._begun) + num_bytes > MAX_BYTES
        )

    def _end_first(self) -> None:
        first = self._begun.popleft()
        first.future.result()
        first.then()

    def __enter__(self) -> Committing:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Nothing is put any more when the lock is given back: where an error ended the run, what is under way ends
        first, and what else fails in it says nothing new."""
        wait([begun.future for begun in self._begun])
        self._begun.clear()
        if self._pool is not None:
            self._pool.shutdown()
