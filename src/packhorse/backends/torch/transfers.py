"""Copies between the host's memory and the device's: a batch's arrays in one, its reduced values in another, through
pinned buffers that are used again, and timed by the device itself.

Copies are put on the stream that computes. They overlap with the host, not with the batch before them: its ids are
some hundred KiB, microseconds beside milliseconds of computing; and in one stream the seconds of copies and of
computing add up.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch

from packhorse.counters import Transfers
from packhorse.data import Float32s

PINNED_KINDS = ("cuda", "xpu")  # elsewhere (mps) copies are plain ones, which the host waits for
ALIGNMENT = 64  # bytes between the beginnings of two arrays in one buffer: kernels read vectors of up to 16
SMALLEST = 2**12  # bytes of the smallest buffer


class Event(Protocol):
    """A point of the device's stream, as torch.cuda.Event, torch.xpu.Event and torch.mps.Event have it."""

    def query(self) -> bool: ...  # whether the device is past it
    def synchronize(self) -> None: ...
    def elapsed_time(self, end_event: Any) -> float: ...  # milliseconds


class Device(Protocol):
    """What of a device its copies need."""

    name: str
    is_pinned: bool  # whether its buffers are, so that copies need not be waited for

    def buffer(self, num_bytes: int) -> torch.Tensor: ...  # [num_bytes] uint8, of the host
    def mark(self) -> Event: ...  # recorded now on the stream that computes


class Accelerator:
    """A Device by torch's module for its kind."""

    def __init__(self, name: str) -> None:
        self.name, self._device = name, torch.device(name)
        self.is_pinned = self._device.type in PINNED_KINDS
        self._module: Any = torch.get_device_module(self._device)

    def buffer(self, num_bytes: int) -> torch.Tensor:
        return torch.empty(num_bytes, dtype=torch.uint8, pin_memory=self.is_pinned)

    def mark(self) -> Event:
        event: Any = self._module.Event(enable_timing=True)
        if self.is_pinned:
            event.record(self._module.current_stream(self._device))
        else:
            event.record()  # mps has one stream
        made: Event = event
        return made


class Copies(Protocol):
    """Those of one forward to its device. apart: each array into memory of its own."""

    def to_device(self, arrays: Mapping[str, np.ndarray], apart: bool = False) -> dict[str, torch.Tensor]: ...


class Plain:
    """Copies without buffers or counts; none at all where the device's memory is the host's."""

    def __init__(self, device: str) -> None:
        self._device = device

    def to_device(self, arrays: Mapping[str, np.ndarray], apart: bool = False) -> dict[str, torch.Tensor]:
        return {name: torch.from_numpy(array).to(self._device) for name, array in arrays.items()}


class Pool:
    """Buffers by size class, the next power of two. One that the device may still read or write is not given out.

    Safe from any thread. No more buffers come to be than are in use at one time: a few batches' in flight.
    """

    def __init__(self, allocate: Callable[[int], torch.Tensor]) -> None:
        self._allocate, self._lock = allocate, threading.Lock()
        self._free: dict[int, list[torch.Tensor]] = {}
        self._leaving: list[tuple[Event, torch.Tensor]] = []

    def take(self, num_bytes: int) -> torch.Tensor:
        """[size class] uint8, at least so many bytes."""
        size = max(SMALLEST, 1 << max(num_bytes - 1, 0).bit_length())
        with self._lock:
            self._reclaim()
            free = self._free.get(size)
            if free:
                return free.pop()
        with torch.inference_mode(False):  # a buffer made in inference mode could not be written outside of it
            return self._allocate(size)

    def give(self, buffer: torch.Tensor, after: Event | None = None) -> None:
        """after: the event behind the copy that uses it; None where that copy was waited for."""
        with self._lock:
            if after is None:
                self._free.setdefault(len(buffer), []).append(buffer)
            else:
                self._leaving.append((after, buffer))

    def _reclaim(self) -> None:
        leaving, self._leaving = self._leaving, []
        for event, buffer in leaving:
            if event.query():
                self._free.setdefault(len(buffer), []).append(buffer)
            else:
                self._leaving.append((event, buffer))


class Copy(NamedTuple):
    """One, between two events."""

    begin: Event
    end: Event
    num_bytes: int
    is_inward: bool


class Staging:
    """The buffers of one model."""

    def __init__(self, device: Device) -> None:
        self.device, self.pool = device, Pool(device.buffer)

    def crossing(self) -> Crossing:
        return Crossing(self)


class Crossing:
    """The Copies of one forward, and that of its values back."""

    def __init__(self, staging: Staging) -> None:
        self._device, self._pool = staging.device, staging.pool
        self._copies: list[Copy] = []

    def to_device(self, arrays: Mapping[str, np.ndarray], apart: bool = False) -> dict[str, torch.Tensor]:
        if not self._device.is_pinned:
            return {name: self._waited_for(array) for name, array in arrays.items()}
        if apart:
            return {name: self._together({name: array})[name] for name, array in arrays.items()}
        return self._together(arrays)

    def to_host(self, values: torch.Tensor) -> Landing:
        """Begins to copy values [rows, width] float32; nothing is waited for where the buffers are pinned."""
        num_bytes = values.numel() * values.element_size()
        buffer = self._pool.take(num_bytes)
        landing = buffer[:num_bytes].view(values.dtype).view(values.shape)
        begin = self._device.mark()
        landing.copy_(values, non_blocking=self._device.is_pinned)
        self._copies.append(Copy(begin, self._device.mark(), num_bytes, False))
        return Landing(landing.numpy(), self._copies, self._device.is_pinned, lambda: self._pool.give(buffer))

    def _together(self, arrays: Mapping[str, np.ndarray]) -> dict[str, torch.Tensor]:
        """One copy of all, one behind the other."""
        places, num_bytes = _places(arrays)
        buffer = self._pool.take(num_bytes)
        staged = buffer.numpy()
        for name, array in arrays.items():
            staged[places[name]] = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        begin = self._device.mark()
        arrived = buffer[:num_bytes].to(self._device.name, non_blocking=True, copy=True)
        end = self._device.mark()
        self._pool.give(buffer, end)
        self._copies.append(Copy(begin, end, num_bytes, True))
        return {name: _part(arrived, places[name], array) for name, array in arrays.items()}

    def _waited_for(self, array: np.ndarray) -> torch.Tensor:
        begin = self._device.mark()
        arrived = torch.from_numpy(array).to(self._device.name, copy=True)
        self._copies.append(Copy(begin, self._device.mark(), array.nbytes, True))
        return arrived


class Landing:
    """Values on their way to the host. `transfers`: of the whole forward, known once `numpy` has returned."""

    def __init__(self, landing: np.ndarray, copies: list[Copy], is_pinned: bool, release: Callable[[], None]) -> None:
        self._landing, self._copies, self._is_pinned, self._release = landing, copies, is_pinned, release
        self._values: Float32s | None = None
        self.transfers = Transfers()

    def numpy(self) -> Float32s:
        """[rows, width], the caller's own: the buffer goes back to the pool."""
        if self._values is None:
            self._copies[-1].end.synchronize()  # the forward's other copies stand before it in the stream
            self._values = self._landing.copy()
            self.transfers = _counted(self._copies, self._is_pinned)
            self._release()
        return self._values


def _places(arrays: Mapping[str, np.ndarray]) -> tuple[dict[str, slice], int]:
    """Where in a buffer each array stands, and the bytes of all."""
    places: dict[str, slice] = {}
    end = 0
    for name, array in arrays.items():
        begin = -(-end // ALIGNMENT) * ALIGNMENT
        end = begin + array.nbytes
        places[name] = slice(begin, end)
    return places, end


def _part(arrived: torch.Tensor, place: slice, array: np.ndarray) -> torch.Tensor:
    dtype = torch.from_numpy(np.empty(0, array.dtype)).dtype
    return arrived[place].view(dtype).view(array.shape)


def _counted(copies: list[Copy], is_pinned: bool) -> Transfers:
    inward, outward = ([c.num_bytes for c in copies if c.is_inward is way] for way in (True, False))
    return Transfers(
        host_to_device_count=len(inward),
        host_to_device_bytes=sum(inward),
        device_to_host_count=len(outward),
        device_to_host_bytes=sum(outward),
        pinned_bytes=sum(inward) + sum(outward) if is_pinned else 0,
        transfer_s=sum(c.begin.elapsed_time(c.end) for c in copies) / 1e3,
    )
