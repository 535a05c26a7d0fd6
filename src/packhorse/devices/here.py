"""How many devices of a kind are here, and giving back memory of one that this process used for a while."""

from __future__ import annotations

import gc
import sys


def num_devices(kind: str) -> int:
    """Those that torch sees; 1 for kinds that come alone."""
    if kind not in ("cuda", "xpu"):
        return 1
    import torch

    return int(torch.cuda.device_count() if kind == "cuda" else torch.xpu.device_count())


def give_back_memory() -> None:
    """What torch holds of freed tensors goes back to the device, for other processes."""
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.empty_cache()
