"""How attention is computed over padded rows: which implementation of transformers, which backend of SDPA is pinned."""

from __future__ import annotations

import contextlib
import importlib.util
import threading
from typing import Any

from packhorse.errors import UsageError
from packhorse.load_request import LoadRequest
from packhorse.packing.attention import FLASH_PACKAGES

# By --attention sdpa:NAME: torch's backend, and the devices that have it.
SDPA_BACKENDS = {
    "flash": ("FLASH_ATTENTION", ("cpu", "cuda", "xpu")),
    "efficient": ("EFFICIENT_ATTENTION", ("cuda",)),
    "cudnn": ("CUDNN_ATTENTION", ("cuda",)),
    "math": ("MATH", ("cpu", "cuda", "mps", "xpu")),
}
HALF = ("bf16", "fp16")


def check_attention(attention: str, device: str) -> None:
    """Raises UsageError where the attention asked for is not available here, saying what is and how to get it."""
    kind = device.split(":")[0]
    here = ["packed", "sdpa", *(f"sdpa:{name}" for name, (_, kinds) in SDPA_BACKENDS.items() if kind in kinds)]
    here += ["flex_attention", "eager"]
    legal = f"here are {', '.join(here)}"
    if attention.startswith("sdpa:") and attention not in here:
        raise UsageError(f"--attention {attention}: torch has no such kernel on {kind}; {legal}")
    package = FLASH_PACKAGES.get(attention)
    if package is None:
        return
    if kind != "cuda":
        raise UsageError(f"--attention {attention}: needs an NVIDIA or AMD GPU, the device is {device}; {legal}")
    if importlib.util.find_spec(package) is None:
        how = "pip install flash-attn --no-build-isolation" + (" (its hopper folder)" if attention[-1] == "3" else "")
        raise UsageError(f"--attention {attention}: the package {package} is not installed ({how}); {legal}")


def implementation(request: LoadRequest) -> str | None:
    """transformers' name of the implementation; None leaves it to transformers.

    FlashAttention has no fp32 kernels: the fp32 model that a lower precision is compared with runs on SDPA.
    """
    name = request.attention
    if name in FLASH_PACKAGES:
        return name if request.precision in HALF else "sdpa"
    if name in ("auto", "packed"):
        return None
    return name.split(":")[0]


class Pinned:
    """SDPA keeps to one backend while any forward is inside: the switches belong to the whole process."""

    def __init__(self, attention: str) -> None:
        self._attention, self._inside, self._lock = attention, 0, threading.Lock()
        self._context: Any = None

    def __enter__(self) -> None:
        with self._lock:
            if self._inside == 0:
                self._context = pinned(self._attention)
                self._context.__enter__()
            self._inside += 1

    def __exit__(self, *error: object) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                self._context.__exit__(None, None, None)


def pinned(attention: str) -> Any:
    """A context in which SDPA uses the backend that was chosen, and no other."""
    if not attention.startswith("sdpa:"):
        return contextlib.nullcontext()
    from torch.nn.attention import SDPBackend, sdpa_kernel

    return sdpa_kernel(getattr(SDPBackend, SDPA_BACKENDS[attention.removeprefix("sdpa:")][0]))
