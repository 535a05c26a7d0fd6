"""Where forwards run: on a CPU one worker a core, each with one thread of its own and all with the same weights; on
other devices the calling thread, whose results are copied back while it goes on.

One thread a worker is a little faster than one worker with all threads, and bitwise repeatable. Workers are threads:
torch's operators release the interpreter's lock.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import torch

from packhorse.backends.torch.transfers import Accelerator, Copies, Landing, Plain, Staging
from packhorse.data import Batch, Float32s
from packhorse.errors import BatchRefusedError, DeviceOutOfMemoryError, first_line

# What a failed allocation says outside CUDA, where torch raises a plain RuntimeError.
MEMORY_WORDS = ("out of memory", "can't allocate memory", "not enough memory", "ALLOC_FAILED")

# Of glibc's malloc.h; the largest block that it keeps at all.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
LARGEST_KEPT = 32 * 2**20

Compute = Callable[[Batch, Copies], torch.Tensor]


class Workers:
    def __init__(self, device: str, count: int, threads: int) -> None:
        """count: of workers, each with `threads` threads inside an operator. One worker is the caller itself."""
        self._device, self._threads = device, threads
        self._staging = None if device == "cpu" else Staging(Accelerator(device))
        if device == "cpu":
            keep_freed_memory()
        self._pool = ThreadPoolExecutor(count, "forward", self._set_threads) if count > 1 else None

    def submit(self, compute: Compute, batch: Batch) -> PendingValues | Values | Landing:
        """Raises, here or when the values are asked for, DeviceOutOfMemoryError where the batch does not fit and
        BatchRefusedError where the model refuses its ids."""
        if self._pool is not None:
            return PendingValues(self._pool.submit(_guarded, compute, batch, Plain(self._device), self._device))
        self._set_threads()
        if self._staging is None:
            return Values(_guarded(compute, batch, Plain(self._device), self._device))
        crossing = self._staging.crossing()
        return crossing.to_host(_guarded(compute, batch, crossing, self._device))

    def on_device(self, compute: Compute, batch: Batch) -> torch.Tensor | Future[torch.Tensor]:
        """The same, but the values stay where they are computed: for who goes on with them there. On a CPU with several
        workers they may still be computed."""
        if self._pool is not None:
            return self._pool.submit(_guarded, compute, batch, Plain(self._device), self._device)
        self._set_threads()
        copies: Copies = Plain(self._device) if self._staging is None else self._staging.crossing()
        return _guarded(compute, batch, copies, self._device)

    def close(self) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def _set_threads(self) -> None:
        """Of this Python thread; another engine may have changed it."""
        if self._device == "cpu" and torch.get_num_threads() != self._threads:
            torch.set_num_threads(self._threads)


def keep_freed_memory() -> None:
    """Tells glibc to keep what is freed, for the whole process: activations of some MB are else given back to the
    system and fetched anew, page by page, at every operator: attention over 200 to 400 tokens runs 3 times as fast."""
    try:
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(M_MMAP_THRESHOLD, LARGEST_KEPT)
        libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
    except (OSError, AttributeError):  # another C library: slower, not wrong
        return


class PendingValues:
    def __init__(self, future: Future[torch.Tensor]) -> None:
        self._future = future

    def numpy(self) -> Float32s:
        values: Float32s = self._future.result().numpy()
        return values


class Values:
    """Values that are here."""

    def __init__(self, values: torch.Tensor) -> None:
        self._values = values

    def numpy(self) -> Float32s:
        values: Float32s = self._values.numpy()
        return values


def _guarded(compute: Compute, batch: Batch, copies: Copies, device: str) -> torch.Tensor:
    try:
        return compute(batch, copies)
    except RuntimeError as error:
        if not isinstance(error, torch.OutOfMemoryError) and not any(w in str(error) for w in MEMORY_WORDS):
            raise
        if device.startswith("cuda"):
            torch.cuda.empty_cache()
        what = f"{batch.num_rows} rows x {batch.max_seqlen} tokens: {first_line(error)}"
        raise DeviceOutOfMemoryError(what) from error
    except ValueError as error:
        raise BatchRefusedError(str(error)) from error
