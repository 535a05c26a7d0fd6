"""Every tensor of a model, a batch and its metrics, by name."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence

from packhorse.auditing.findings import PlacedTensor, TensorKind


class Named(NamedTuple):
    kind: TensorKind
    name: str
    tensor: torch.Tensor
    is_saved: bool = True  # of a buffer: whether state_dict has it


def model_tensors(model: nn.Module) -> Iterator[Named]:
    """Parameters (shared ones once), buffers, tensors that are plain attributes, and quantization states."""
    for name, parameter in model.named_parameters():
        yield Named("parameter", name, parameter)
        yield from _quantized(name, parameter)
    for path, module in model.named_modules():
        inside = path + "." if path else ""
        for name, buffer in module._buffers.items():
            if buffer is not None:
                yield Named("buffer", inside + name, buffer, name not in module._non_persistent_buffers_set)
        yield from _attributes(inside, module)


def _attributes(inside: str, module: nn.Module) -> Iterator[Named]:
    """Of a module: tensors that .to() does not move, and states such as bitsandbytes' MatmulLtState."""
    for name, value in vars(module).items():
        if isinstance(value, torch.Tensor):
            yield Named("attribute", inside + name, value)
        elif name in ("state", "quant_state"):
            yield from _parts(inside + name, value)


def _quantized(name: str, parameter: torch.Tensor) -> Iterator[Named]:
    """torchao: the tensors that a tensor is made of. bitsandbytes: those that its parameters carry."""
    if is_made_of_others(parameter):
        for part in parameter.__tensor_flatten__()[0]:  # type: ignore[attr-defined]
            yield Named("quantization", f"{name}.{part}", getattr(parameter, part))
        return
    for attribute, value in getattr(parameter, "__dict__", {}).items():
        if not (isinstance(value, torch.Tensor) and value.data_ptr() == parameter.data_ptr() != 0):  # by another name
            yield from _parts(f"{name}.{attribute}", value)


def is_made_of_others(tensor: torch.Tensor) -> bool:
    """Whether it is a quantized weight of torchao's kind, whose own type and size are those of what it stands for."""
    return hasattr(tensor, "__tensor_flatten__") and not type(tensor).__module__.startswith("torch.")


def _parts(name: str, state: Any) -> Iterator[Named]:
    """The tensors of a quantization state; bitsandbytes nests one in it (state2)."""
    if isinstance(state, torch.Tensor):
        yield Named("quantization", name, state)
        return
    for attribute, value in getattr(state, "__dict__", {}).items():
        if isinstance(value, torch.Tensor) or attribute == "state2":
            yield from _parts(f"{name}.{attribute}", value)


def tensors_in(value: Any, name: str = "") -> Iterator[tuple[str, torch.Tensor]]:
    """Of nested mappings, sequences and dataclasses, by the way to them: labels, images[0].mask."""
    inside = name + "." if name else ""
    if isinstance(value, torch.Tensor):
        yield name or "batch", value
    elif isinstance(value, PackedSequence):
        yield inside + "data", value.data
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from tensors_in(item, f"{inside}{key}")
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for field in dataclasses.fields(value):
            yield from tensors_in(getattr(value, field.name), f"{inside}{field.name}")
    elif isinstance(value, Sequence) and not isinstance(value, str | bytes):
        for place, item in zip(places(value), value, strict=True):
            yield from tensors_in(item, (inside if place.isidentifier() else name) + place)


def places(value: Sequence[Any]) -> Sequence[str]:
    """Of a sequence's items: [0], [1], ..., or the names of a named tuple's fields."""
    return getattr(value, "_fields", None) or [f"[{index}]" for index in range(len(value))]


def metrics_of(metrics: Any) -> dict[str, Any]:
    """Metrics by name, whether given as one, as a sequence or as a mapping."""
    if metrics is None:
        return {}
    if isinstance(metrics, Mapping) and not isinstance(metrics, nn.Module):
        return {str(name): metric for name, metric in metrics.items()}
    several = list(metrics) if isinstance(metrics, list | tuple) else [metrics]
    names = [getattr(m, "__name__", type(m).__name__) for m in several]
    named = enumerate(zip(names, several, strict=True))
    return {name if names.count(name) == 1 else f"{name}[{i}]": metric for i, (name, metric) in named}


def metric_states(name: str, metric: Any) -> Iterator[Named]:
    """Tensors among a metric's attributes, and in lists and mappings of it; of a module those below it too."""
    is_module = isinstance(metric, nn.Module)
    for found in model_tensors(metric) if is_module else ():
        yield found._replace(kind="metric", name=f"{name}.{found.name}")
    for path, owner in metric.named_modules() if is_module else [("", metric)]:
        inside = f"{name}.{path}." if path else f"{name}."
        for attribute, value in getattr(owner, "__dict__", {}).items():
            if attribute.startswith("_") or (is_module and isinstance(value, torch.Tensor)):
                continue  # what a metric is reset to, and what it has computed; or what was listed above
            for way, tensor in tensors_in(value, inside + attribute):
                yield Named("metric", way, tensor)


def placed(named: Named) -> PlacedTensor:
    t = named.tensor
    size = 0 if is_made_of_others(t) else t.numel() * t.element_size()
    return PlacedTensor(named.kind, named.name, str(t.device), dtype_name(t.dtype), tuple(t.shape), size)


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
