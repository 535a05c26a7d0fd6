"""Before a split model is loaded, and what is checked after it."""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from packhorse.backends.torch.placement.device_map import disjoint_map, key, skeleton
from packhorse.backends.torch.placement.lying import check_on_devices, keep_to_first_device, placed
from packhorse.backends.torch.placement.words import in_units, some
from packhorse.devices.inputs import is_split
from packhorse.errors import ModelError, UsageError
from packhorse.generation import Placement


class Placer:
    """Places one model: options() before from_pretrained, settle(model) after it, close() at the end."""

    def __init__(self, placement: Placement, device: str) -> None:
        """device: of the run; where it is the cpu, or one GPU by its number, the map keeps to it and to what is slower.

        Raises UsageError where accelerate is missing, a device is not here, or tensor parallelism has no processes.
        """
        self._placement, self._device = placement, device
        self._temporary: tempfile.TemporaryDirectory[str] | None = None
        if not placement.is_split:
            return
        if importlib.util.find_spec("accelerate") is None:
            flag = "--tensor-parallel" if placement.tensor_parallel else "--device-map"
            raise UsageError(f"{flag}: needs the package accelerate; pip install accelerate")
        if placement.tensor_parallel:
            _check_processes()
        else:
            self._limits = _limits(placement, device)

    @property
    def has_map(self) -> bool:
        return self._placement.device_map is not None

    def options(self, auto: Any, folder: Path) -> dict[str, Any]:
        """Of from_pretrained. auto: the class whose from_pretrained is called.

        Raises UsageError where a device map of a file does not name this model's modules, each once.
        """
        placement = self._placement
        if not placement.is_split:
            return {}
        if placement.tensor_parallel:
            return _parallel(auto, folder)
        if placement.offload_folder is not None:
            _make(placement.offload_folder)
        else:
            self._temporary = tempfile.TemporaryDirectory(prefix="packhorse-offload-")
        where = {"offload_folder": placement.offload_folder or (self._temporary and self._temporary.name)}
        if isinstance(placement.device_map, Mapping):
            return where | {"device_map": disjoint_map(skeleton(auto, folder), placement.device_map)}
        limits = {key(device): size for device, size in self._limits.items()}
        return where | {"device_map": placement.device_map} | ({"max_memory": limits} if limits else {})

    def settle(self, model: Any, body_alone: bool = False) -> None:
        """Checks where everything lies, and puts inputs on the device of the first layer from now on.

        body_alone: whether the body will be called without the model around it, so that its output too has to be
        brought to that device. Raises ModelError where the model does not fit into what --max-memory allows.
        """
        if not is_split(model):
            self._check_held(model)
            return
        if not isinstance(self._placement.device_map, Mapping):
            self._check_limits(model)
        check_on_devices(model)
        keep_to_first_device(model, body_alone)

    def close(self) -> None:
        """Removes the temporary offload folder."""
        if self._temporary is not None:
            self._temporary.cleanup()
            self._temporary = None

    def _check_held(self, model: Any) -> None:
        """Older versions of transformers leave a model whose one device is the disk without weights."""
        if self._placement.is_split and any(p.device.type == "meta" for p in model.parameters()):
            raise ModelError(
                "the model would lie on the disk alone, which this version of transformers cannot run: give cpu a "
                "share of it in --max-memory or --device-map, or upgrade transformers"
            )

    def _check_limits(self, model: Any) -> None:
        """accelerate puts on the disk whatever has no other place: it may only where that was said."""
        on_disk = next((p for p in placed(model) if p.device == "disk"), None)
        limits = self._placement.max_memory
        allowed = limits.get("disk", None if self._placement.offload_folder is None else 2**63)
        if on_disk is None or (allowed is not None and on_disk.num_bytes <= allowed):
            return
        whole = in_units(sum(p.num_bytes for p in placed(model)))
        given = ", ".join(f"{device} {in_units(size)}" for device, size in self._limits.items()) or "what is free here"
        disk = f"disk={-(-on_disk.num_bytes // 10**6)}MB"
        raise ModelError(
            f"the model's weights take {whole} and do not fit into {given}, where a device keeps room for its largest "
            f"layer: {some(on_disk.modules)}, {in_units(on_disk.num_bytes)}, would have to lie on the disk. Raise "
            f"--max-memory; add {disk} to it, or give --offload-folder (both are slow: read at every forward); or take "
            "--precision int8 or int4"
        )


def _make(folder: str) -> None:
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"--offload-folder {folder}: cannot be made: {error}; name a folder on a fast disk") from error


def devices_here() -> tuple[str, ...]:
    """By the names of --max-memory, the fastest first."""
    gpus = torch.cuda.device_count() or (torch.xpu.device_count() if hasattr(torch, "xpu") else 0)
    mps = ("mps",) if torch.backends.mps.is_available() else ()
    return (*map(str, range(gpus)), *mps, "cpu", "disk")


def _limits(placement: Placement, device: str) -> Mapping[str, int]:
    """What each device may hold, of those that the run may use; empty: whatever is free on all of them."""
    mapping = placement.device_map
    named = {str(d) for d in mapping.values()} if isinstance(mapping, Mapping) else set(placement.max_memory)
    flag = "--device-map" if isinstance(mapping, Mapping) else "--max-memory"
    here = devices_here()
    unknown = sorted(named - set(here))
    if unknown and placement.is_planned:
        raise UsageError(
            f"--device-map: the output was begun with layers on {', '.join(sorted(named))}, and here are "
            f"{', '.join(here)}: go on there, give --device-map FILE.json, or --overwrite to start anew"
        )
    if unknown:
        raise UsageError(f"{flag} names {', '.join(unknown)}: here are {', '.join(here)}")
    gpus = sorted(named - {"cpu", "disk"})
    if device == "cpu" and gpus:
        raise UsageError(f"--devices cpu, and {flag} names {', '.join(gpus)}: leave out one of the two")
    if placement.max_memory or isinstance(mapping, Mapping):
        return placement.max_memory
    if device == "cpu":
        return {"cpu": _free("cpu")}
    kind, _, index = device.partition(":")
    return {index: _free(device), "cpu": _free("cpu")} if kind in ("cuda", "xpu") and index else {}


def _free(device: str) -> int:
    """Nine tenths of what is free: the rest is for what a forward needs."""
    import psutil

    if device == "cpu":
        return int(psutil.virtual_memory().available * 0.9)
    return int(torch.get_device_module(device).mem_get_info(device)[0] * 0.9)


def _check_processes() -> None:
    if not torch.distributed.is_initialized() or torch.distributed.get_world_size() < 2:
        raise UsageError("--tensor-parallel: is for several processes that have met, and this one is alone")


def _parallel(auto: Any, folder: Path) -> dict[str, Any]:
    """Raises ModelError for a model whose authors gave no plan of which layers are cut how."""
    model = skeleton(auto, folder)
    if not model.supports_tp_plan:
        raise ModelError(f"{folder}: --tensor-parallel: {type(model).__name__} has no tp_plan; take --device-map auto")
    try:  # transformers takes tp_plan by itself until 5.18
        from transformers.distributed import DistributedConfig

        size = torch.distributed.get_world_size()
        return {"distributed_config": DistributedConfig(tp_size=size, tp_plan="auto")}
    except (ImportError, TypeError):
        return {"tp_plan": "auto"}
