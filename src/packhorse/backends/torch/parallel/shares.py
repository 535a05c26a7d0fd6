"""A rank's share of a model's weights."""

from __future__ import annotations

from typing import Any


def is_cut(model: Any) -> bool:
    """Whether parameters are shares of larger ones (torch's DTensor)."""
    return any(hasattr(p, "_local_tensor") for p in model.parameters())


def local_bytes(model: Any) -> int:
    """Of this rank's share of all weights, each piece of memory once."""
    shares = [getattr(p, "_local_tensor", p) for p in model.parameters()]
    return sum({t.data_ptr(): t.numel() * t.element_size() for t in shares}.values())
