"""Where the keys and values of running rows stand: in buckets of one capacity each, without gaps between rows.

A row that fills its bucket moves to the next one, once in BLOCK tokens, so that a step reads hardly more keys than the
rows have, whatever their lengths, and each bucket is one call of the attention kernel.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import numpy as np
import torch

from packhorse.backends.torch.generation.kv_attention import Group, Layers

BLOCK = 64  # tokens by which buckets differ; with 128, 1.1 times the time
SPARE = 8  # slots a bucket grows by


class Running(Protocol):
    """A row that is being written; compared by identity."""

    length: int  # tokens whose keys stand in its slot: all but the last id

    @property
    def last_id(self) -> int: ...


R = TypeVar("R", bound=Running)


@dataclass(frozen=True, slots=True)
class Span:
    """Tokens start to stop of a forward over prompts."""

    layers: Layers
    start: int
    stop: int


class Slots(Generic[R]):
    def __init__(self) -> None:
        self._buckets: dict[int, _Bucket[R]] = {}  # by capacity, ascending

    @property
    def running(self) -> list[R]:
        """In the order of the next step."""
        return [running for bucket in self._buckets.values() for running in bucket.rows]

    @property
    def num_bytes(self) -> int:
        return sum(bucket.num_bytes for bucket in self._buckets.values())

    def enter(self, running: R, spans: Sequence[Span]) -> None:
        """A row whose tokens so far are the spans', one after the other."""
        bucket = self._bucket(_capacity(running.length + 1), spans[0].layers, 1)
        bucket.rows.append(running)
        bucket.write(len(bucket.rows) - 1, spans)

    def leave(self, finished: Sequence[R]) -> None:
        """The last rows of a bucket fill the gaps."""
        gone = set(finished)
        for bucket in self._buckets.values():
            bucket.drop([place for place, running in enumerate(bucket.rows) if running in gone])
        self._forget_empty()

    def make_room(self) -> None:
        """For one more token of each row."""
        for capacity, bucket in reversed(list(self._buckets.items())):
            full = [place for place, running in enumerate(bucket.rows) if running.length == capacity]
            if full:
                self._bucket(capacity + BLOCK, bucket.likeness, len(full)).take_over(bucket, full)
                bucket.drop(full)
        self._forget_empty()

    def groups(self) -> list[Group]:
        """Of the next step, in the order of `running`."""
        return [
            Group(bucket.layers, np.array([running.length + 1 for running in bucket.rows], np.int64))
            for bucket in self._buckets.values()
        ]

    def _bucket(self, capacity: int, like: Layers, more: int) -> _Bucket[R]:
        if capacity not in self._buckets:
            self._buckets[capacity] = _Bucket(capacity)
            self._buckets = dict(sorted(self._buckets.items()))
        bucket = self._buckets[capacity]
        bucket.reserve(len(bucket.rows) + more, like)
        return bucket

    def _forget_empty(self) -> None:
        self._buckets = {capacity: bucket for capacity, bucket in self._buckets.items() if bucket.rows}


class _Bucket(Generic[R]):
    def __init__(self, capacity: int) -> None:
        self._capacity, self._slots = capacity, 0
        self.rows: list[R] = []
        self.layers: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}  # [slots, k, capacity, d] each

    @property
    def num_bytes(self) -> int:
        return sum(x.nbytes for both in self.layers.values() for x in both)

    @property
    def likeness(self) -> Layers:
        """One slot, for the shapes."""
        return {layer: (keys[0], values[0]) for layer, (keys, values) in self.layers.items()}

    def reserve(self, slots: int, like: Layers) -> None:
        """Room for so many rows; like: [k, any, d]. Places that hold no token hold zeros: NaN or infinity, which a row
        that went wrong leaves behind, would get through the mask."""
        if slots <= self._slots:
            return
        self._slots = -(-slots // SPARE) * SPARE
        for layer, both in like.items():
            grown = tuple(x.new_zeros(self._slots, x.shape[0], self._capacity, x.shape[2]) for x in both)
            for new, old in zip(grown, self.layers.get(layer, ()), strict=False):
                new[: len(self.rows)] = old[: len(self.rows)]
            self.layers[layer] = (grown[0], grown[1])

    def write(self, slot: int, spans: Sequence[Span]) -> None:
        for layer, places in self.layers.items():
            at = 0
            for span in spans:
                end = at + span.stop - span.start
                for place, source in zip(places, span.layers[layer], strict=True):
                    place[slot, :, at:end] = source[:, span.start : span.stop]
                at = end
            for place in places:
                place[slot, :, at:] = 0

    def take_over(self, other: _Bucket[R], places: list[int]) -> None:
        """Rows of a smaller bucket, behind those that are here."""
        first, last = len(self.rows), len(self.rows) + len(places)
        self.rows += [other.rows[place] for place in places]
        for layer, both in self.layers.items():
            for mine, theirs in zip(both, other.layers[layer], strict=True):
                mine[first:last, :, : theirs.shape[2]] = theirs[torch.tensor(places, device=theirs.device)]
                mine[first:last, :, theirs.shape[2] :] = 0

    def drop(self, places: list[int]) -> None:
        if not places:
            return
        kept = len(self.rows) - len(places)
        gone = set(places)
        holes = [place for place in places if place < kept]
        movers = [place for place in range(kept, len(self.rows)) if place not in gone]
        for hole, mover in zip(holes, movers, strict=True):
            self.rows[hole] = self.rows[mover]
        del self.rows[kept:]
        if movers:
            self._move(movers, holes)

    def _move(self, sources: list[int], targets: list[int]) -> None:
        for both in self.layers.values():
            for x in both:
                x[torch.tensor(targets, device=x.device)] = x[torch.tensor(sources, device=x.device)]


def _capacity(length: int) -> int:
    return -(-length // BLOCK) * BLOCK
