"""Where a loaded model wants its inputs, and in which type: of any torch module, split over devices or not."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch

META = torch.device("meta")


def input_device(model: Any) -> torch.device | None:
    """That of the layer that reads the inputs: of a model split by accelerate where its first layer runs, else where
    most of the bytes of its weights lie. None for a module without weights."""
    first = _embeddings(model) if is_split(model) else None
    for module in (first, model):
        device = None if module is None else _hooked_device(module)
        if device is not None:
            return device
    if first is not None:
        return next((p.device for p in first.parameters() if p.device != META), None) or main_device(model)
    return main_device(model)


def is_split(model: Any) -> bool:
    """Whether layers lie on different devices, or on the disk."""
    devices = set((getattr(model, "hf_device_map", None) or {}).values())
    return len(devices) > 1 or "disk" in devices


def main_device(model: Any) -> torch.device | None:
    """Where most of the bytes of parameters lie, or of buffers where there are none. Offloaded weights of a split model
    are shown as lying on the meta device: they do not count."""
    tensors = list(model.parameters()) or list(model.buffers())
    held = [t for t in tensors if t.device != META] if is_split(model) else tensors
    sizes: Counter[torch.device] = Counter()
    for tensor in held:
        sizes[tensor.device] += tensor.numel() * tensor.element_size() + 1
    return sizes.most_common(1)[0][0] if sizes else None


def floating_dtype(model: Any) -> torch.dtype | None:
    """In which most floating-point parameters are, of 16 bits and more: what layers compute in where they are not
    quantized. None where there are none."""
    sizes: Counter[torch.dtype] = Counter()
    for parameter in model.parameters():
        if parameter.dtype.is_floating_point and parameter.dtype.itemsize >= 2:
            sizes[parameter.dtype] += parameter.numel()
    return sizes.most_common(1)[0][0] if sizes else None


def _embeddings(model: Any) -> Any:
    """The input embeddings of a transformers model; None of any other."""
    find = getattr(model, "get_input_embeddings", None)
    try:
        return find() if callable(find) else None
    except NotImplementedError:
        return None


def _hooked_device(module: Any) -> torch.device | None:
    """To which accelerate's hook on this module brings its inputs."""
    hook = getattr(module, "_hf_hook", None)
    hooks = getattr(hook, "hooks", [hook])
    devices = (getattr(h, "execution_device", None) for h in hooks)
    return next((torch.device(device) for device in devices if device is not None), None)
