"""A device map of a file, held against the modules of the model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from packhorse.backends.torch.placement.words import some
from packhorse.backends.torch.quiet import quiet
from packhorse.errors import ModelError, UsageError, did_you_mean


def skeleton(auto: Any, folder: Path) -> Any:
    """The model on the meta device: modules and shapes, no weights. Raises ModelError."""
    from transformers import AutoConfig

    try:
        with quiet(), torch.device("meta"):
            config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
            return auto.from_config(config, trust_remote_code=False)
    except (OSError, ValueError, RuntimeError, KeyError, ImportError) as error:
        raise ModelError(f"{folder}: cannot be built from its config: {error}") from error


def disjoint_map(model: Any, mapping: Mapping[str, Any]) -> dict[str, int | str]:
    """The same map with every module once: transformers and accelerate differ in what they make of one that overlaps,
    and the first takes model.layers.1 for the beginning of model.layers.10.

    Raises UsageError where it names modules that there are none of, leaves some out, or parts tied weights.
    """
    modules = {name for name, _ in model.named_modules()}
    tensors = [*dict(model.named_parameters(remove_duplicate=False)), *dict(model.named_buffers())]
    unknown = [name for name in mapping if name not in modules and name not in tensors]
    if unknown:
        hints = did_you_mean(unknown[0], modules)
        raise UsageError(f"--device-map: the model has no module {some(unknown)}{hints}; it has {_top(model)}")
    devices = {name: device_of(name, mapping) for name in tensors}
    missing = list(dict.fromkeys(name.rpartition(".")[0] for name, device in devices.items() if device is None))
    if missing:
        raise UsageError(
            f'--device-map: has no device for {some(missing)}; name them or modules around them, or "" for all others'
        )
    _check_tied(model, devices)
    found: dict[str, int | str] = {}
    _collect(model, "", devices, found)
    return found


def device_of(name: str, mapping: Mapping[str, Any]) -> Any:
    """Of the longest name in the map that is the tensor's own or that of a module around it."""
    parts = name.split(".")
    around = (".".join(parts[:n]) for n in range(len(parts), -1, -1))
    return next((mapping[prefix] for prefix in around if prefix in mapping), None)


def _check_tied(model: Any, devices: Mapping[str, Any]) -> None:
    for target, source in getattr(model, "all_tied_weights_keys", {}).items():
        here, there = devices.get(target), devices.get(source)
        if here != there:
            raise UsageError(
                f"--device-map: {target} and {source} are one tensor, and are put on {here} and {there}; put both "
                "modules on the same device"
            )


def _collect(module: nn.Module, name: str, devices: Mapping[str, Any], found: dict[str, int | str]) -> None:
    """One entry for a module of one device, else one for each child."""
    inside = name + "." if name else ""
    mine = {device for tensor, device in devices.items() if tensor.startswith(inside)}
    if len(mine) == 1:
        found[name] = key(str(mine.pop()))
        return
    for tensor in (*module._parameters, *module._buffers):
        if inside + tensor in devices:
            found[inside + tensor] = key(str(devices[inside + tensor]))
    for child, submodule in module.named_children():
        _collect(submodule, inside + child, devices, found)


def key(device: str) -> int | str:
    return int(device) if device.isdigit() else device


def _top(model: Any) -> str:
    names = [f"{name}.{below}" for name, child in model.named_children() for below, _ in child.named_children()]
    return some(names or [name for name, _ in model.named_children()])
