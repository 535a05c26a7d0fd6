"""packhorse.align: a batch and its metrics on the device of a model, in the model's type."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Mapping, MutableMapping
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence

from packhorse.auditing.judging import is_target
from packhorse.auditing.tensors import dtype_name, metric_states, metrics_of, places
from packhorse.devices.inputs import floating_dtype, input_device, main_device
from packhorse.errors import UsageError


class Moved(NamedTuple):
    """What was moved, by the way to it in the batch, or the metric's name."""

    name: str
    from_device: str
    to_device: str
    from_dtype: str
    to_dtype: str
    num_bytes: int  # before it was moved

    def __str__(self) -> str:
        way = f"{self.from_device} -> {self.to_device}" if self.from_device != self.to_device else self.to_device
        return f"{self.name}: {way}" + (
            f", {self.from_dtype} -> {self.to_dtype}" if self.from_dtype != self.to_dtype else ""
        )


class Aligned(NamedTuple):
    batch: Any  # of the kind it was; the very same object where nothing in it had to move
    metrics: Any
    moved: list[Moved]


def align(batch: Any, metrics: Any = None, *, like: nn.Module | torch.Tensor | torch.device | str) -> Aligned:
    """Moves what does not lie where `like` computes. Nothing that was handed in is changed, metrics excepted: theirs is
    the state that goes on being added to.

    batch: tensors in mappings (transformers' BatchEncoding among them), lists, tuples and dataclasses, nested as they
    are. Floating-point inputs get the type of the model's weights; labels and targets keep theirs, and ids, masks and
    all other integers and bools always do. metrics: one, a sequence or a mapping; those with to() are moved by it, of
    others the tensors among their attributes. like: a model (split over devices: the device of its first layer), a
    tensor, or a device alone, which leaves types as they are. To a CUDA device copies go by pinned memory and do not
    block.

    Raises UsageError where `like` has no weights, and for tensors of the meta device, which have no numbers to move.
    """
    device, dtype = _wanted(like)
    moved: list[Moved] = []
    done: dict[tuple[int, torch.dtype], torch.Tensor] = {}  # one tensor in two places stays one

    def move(name: str, tensor: torch.Tensor) -> torch.Tensor:
        floats = tensor.dtype.is_floating_point and dtype is not None and not is_target(name)
        wanted = dtype if floats and dtype else tensor.dtype
        if (id(tensor), wanted) in done:
            return done[id(tensor), wanted]
        result = done[id(tensor), wanted] = _moved_to(name, tensor, device, wanted)
        if result is not tensor:
            moved.append(_told(name, tensor, result))
        return result

    aligned = _rebuilt(batch, "", move)
    states = main_device(like) if isinstance(like, nn.Module) else device
    return Aligned(aligned, _aligned_metrics(metrics, states or device, moved), moved)


def _wanted(like: Any) -> tuple[torch.device, torch.dtype | None]:
    if isinstance(like, torch.Tensor):
        return like.device, like.dtype if like.dtype.is_floating_point else None
    if isinstance(like, str | torch.device):
        return torch.device(like), None
    if not isinstance(like, nn.Module):
        raise UsageError(
            f"align(like={type(like).__name__}): has to be a torch.nn.Module, a tensor, a torch.device or its name"
        )
    device = input_device(like)
    if device is None:
        raise UsageError(
            f"align(like={type(like).__name__}): has neither parameters nor buffers that lie anywhere; give a device"
        )
    return device, floating_dtype(like)


def _moved_to(name: str, tensor: torch.Tensor, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    """The same object where it is right already. The type is changed first: fewer bytes travel, from pinned memory."""
    is_there = _is_there(tensor, device)
    if is_there and tensor.dtype == dtype:
        return tensor
    if tensor.device.type == "meta" and not is_there:
        raise UsageError(f"align: {name} is on the meta device: it has a shape and no numbers that could be moved")
    tensor = tensor.to(dtype)
    if device.type == "cuda" and tensor.device.type == "cpu":
        pinned = tensor if tensor.is_pinned() else tensor.pin_memory()
        return pinned.to(device, non_blocking=True)
    return tensor.to(device)


def _is_there(tensor: torch.Tensor, device: torch.device) -> bool:
    return tensor.device.type == device.type and device.index in (None, tensor.device.index)


def _told(name: str, before: torch.Tensor, after: torch.Tensor) -> Moved:
    size = before.numel() * before.element_size()
    dtypes = dtype_name(before.dtype), dtype_name(after.dtype)
    return Moved(name, str(before.device), str(after.device), *dtypes, size)


# -- containers, kept in kind

Move = Callable[[str, torch.Tensor], torch.Tensor]


def _rebuilt(value: Any, name: str, move: Move) -> Any:
    """The same object where nothing in it moved."""
    inside = name + "." if name else ""
    if isinstance(value, torch.Tensor):
        return move(name or "batch", value)
    if isinstance(value, PackedSequence):  # its batch_sizes have to stay on the host
        data = move(inside + "data", value.data)
        return value if data is value.data else value.to(data.device)._replace(data=data)
    if isinstance(value, Mapping):
        return _mapping(value, {k: _rebuilt(v, f"{inside}{k}", move) for k, v in value.items()})
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return _dataclass(value, inside, move)
    if isinstance(value, list | tuple):
        ways = [(inside if place.isidentifier() else name) + place for place in places(value)]
        return _sequence(value, [_rebuilt(v, way, move) for way, v in zip(ways, value, strict=True)])
    return value


def _mapping(value: Mapping[Any, Any], items: dict[Any, Any]) -> Any:
    if all(items[key] is value[key] for key in value):
        return value
    if not isinstance(value, MutableMapping):
        return items
    found = copy.copy(value)
    if isinstance(getattr(found, "data", None), dict):  # a UserDict, as BatchEncoding: a copy would share it
        found.data = dict(found.data)  # type: ignore[attr-defined]
    for key, item in items.items():
        _set_item(found, key, item)
    return found


def _set_item(found: Any, key: Any, item: Any) -> None:
    """BatchEncoding is a UserDict; a class of that kind may have no assignment of its own."""
    (found.data if isinstance(getattr(found, "data", None), dict) else found)[key] = item


def _dataclass(value: Any, inside: str, move: Move) -> Any:
    """Frozen ones too, and fields that __init__ does not take."""
    before = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    after = {name: _rebuilt(item, inside + name, move) for name, item in before.items()}
    if all(after[name] is before[name] for name in before):
        return value
    found = copy.copy(value)
    for name, item in after.items():
        object.__setattr__(found, name, item)
    return found


def _sequence(value: Any, items: list[Any]) -> Any:
    if all(new is old for new, old in zip(items, value, strict=True)):
        return value
    if hasattr(value, "_fields"):
        return type(value)(*items)
    if isinstance(value, tuple):
        return tuple(items)
    found = copy.copy(value)
    found[:] = items
    return found


# -- metrics


def _aligned_metrics(metrics: Any, device: torch.device, moved: list[Moved]) -> Any:
    """In place; the same object, or a container of the same kind with what to() gave."""
    found = {name: _aligned_metric(name, metric, device, moved) for name, metric in metrics_of(metrics).items()}
    if metrics is None or all(found[n] is m for n, m in metrics_of(metrics).items()):
        return metrics
    if isinstance(metrics, Mapping):
        return _mapping(metrics, dict(zip(metrics, found.values(), strict=True)))
    return _sequence(metrics, list(found.values())) if isinstance(metrics, list | tuple) else next(iter(found.values()))


def _aligned_metric(name: str, metric: Any, device: torch.device, moved: list[Moved]) -> Any:
    before = [(n.name, n.tensor) for n in metric_states(name, metric)]
    wrong = [
        (way, t) for way, t in before if t.device.type != device.type or device.index not in (None, t.device.index)
    ]
    if not wrong:
        return metric
    if callable(getattr(metric, "to", None)):
        result = metric.to(device)
    else:
        result = metric

        def move(way: str, tensor: torch.Tensor) -> torch.Tensor:
            return _moved_to(way, tensor, device, tensor.dtype)

        for attribute, value in vars(metric).items():
            setattr(metric, attribute, _rebuilt(value, f"{name}.{attribute}", move))
    moved += [
        Moved(way, str(t.device), str(device), *(dtype_name(t.dtype),) * 2, t.numel() * t.element_size())
        for way, t in wrong
    ]
    return metric if result is None else result
