"""Out of memory by one name, whatever raised it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

from packhorse.backends.torch.workers import MEMORY_WORDS
from packhorse.errors import DeviceOutOfMemoryError


@contextlib.contextmanager
def out_of_memory_named(device: str) -> Iterator[None]:
    """Raises DeviceOutOfMemoryError where what it encloses ran out of the device's memory."""
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, torch.OutOfMemoryError) and not any(w in str(error) for w in MEMORY_WORDS):
            raise
        if device.startswith("cuda"):
            torch.cuda.empty_cache()
        raise DeviceOutOfMemoryError(str(error).splitlines()[0]) from error
