"""What is seen while a batch is computed. No torch."""

from __future__ import annotations

from dataclasses import dataclass

from packhorse.auditing.findings import Direction
from packhorse.auditing.places import Place


@dataclass(slots=True)
class Copy:
    direction: Direction
    place: Place
    source: str
    origin: Origin | None  # where it was made, on the host and in this very batch
    is_stored: bool  # a tensor of the model
    is_pinned: bool
    is_blocking: bool
    num_bytes: int
    elapsed_s: float = 0.0


@dataclass(slots=True)
class Wait:
    call: str
    place: Place
    elapsed_s: float = 0.0


@dataclass(slots=True)
class Mixed:
    """An operator over tensors of several devices."""

    operator: str
    place: Place
    strangers: tuple[tuple[str, Origin | None], ...]  # those that are not on the accelerator
    num_bytes: int


@dataclass(frozen=True, slots=True)
class Origin:
    call: str
    place: Place


Event = Copy | Wait | Mixed
