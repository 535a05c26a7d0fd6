"""What lies on another device or is of another type than the rest."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import torch

from packhorse.auditing.findings import Finding, Kind, TensorKind
from packhorse.auditing.tensors import Named, dtype_name, is_made_of_others, tensors_in

EACH = 8  # findings of one kind that are listed one by one
PADDING_SHARE = 0.5  # of the positions of a batch, from which on padding is worth a hint
MASK = "attention_mask"
TARGETS = ("label", "labels", "target", "targets")  # numbers to compare with: no inputs of a layer

DEVICE_FIX: Mapping[TensorKind, tuple[Kind, str]] = {
    "parameter": ("parameter_device", "Move the whole model: model.to({device!r}), after the last change to it"),
    "buffer": ("buffer_device", "model.to({device!r}) moves buffers too; in code that replaces it, make it there"),
    "attribute": (
        "attribute_device",
        "model.to() does not move plain attributes: self.register_buffer({name!r}, ..., persistent=False)",
    ),
    "quantization": ("quantization_device", "Load the model with device_map={device!r} instead of moving it later"),
    "input": ("input_device", "packhorse.align(batch, like=model), or .to({device!r}, non_blocking=True) when loading"),
    "metric": ("metric_device", "metric.to({device!r}), or packhorse.align(batch, metrics, like=model)"),
}


class Target(NamedTuple):
    """Where things have to be."""

    device: torch.device  # most of the model
    input_device: torch.device  # its first layer
    dtype: torch.dtype | None
    is_split: bool


def judge_placement(tensors: Iterable[Named], target: Target) -> list[Finding]:
    """Findings on devices, then on types."""
    known = list(tensors)
    return _grouped([*_devices(known, target), *_dtypes(known, target)])


def _devices(tensors: list[Named], target: Target) -> Iterator[Finding]:
    for named in tensors:
        of_model = named.kind in ("parameter", "buffer", "quantization")
        wanted = target.input_device if named.kind == "input" else target.device
        if (of_model and target.is_split) or _same(named.tensor.device, wanted):
            continue
        if named.kind == "attribute" and not named.tensor.ndim:
            continue  # a number goes with tensors of any device
        kind, fix = DEVICE_FIX[named.kind]
        what = f"{named.kind} lies on {named.tensor.device}, {_rest(named.kind)} on {wanted}"
        short = named.name.rpartition(".")[2]
        yield Finding(kind, named.name, what, fix.format(device=str(wanted), name=short), 1, _size(named.tensor))


def _rest(kind: TensorKind) -> str:
    return "the layer that reads it" if kind == "input" else "the model"


def _same(device: torch.device, wanted: torch.device) -> bool:
    return device.type == wanted.type and (None in (device.index, wanted.index) or device.index == wanted.index)


def _dtypes(tensors: list[Named], target: Target) -> Iterator[Finding]:
    """Of parameters and saved buffers, and of inputs. Buffers that are not saved are often kept in float32 on purpose
    (the frequencies of rotary positions)."""
    if target.dtype is None:
        return
    wanted = dtype_name(target.dtype)
    for named in tensors:
        t = named.tensor
        if not t.dtype.is_floating_point or t.dtype == target.dtype or t.dtype.itemsize < 2 or is_made_of_others(t):
            continue
        seen = dtype_name(t.dtype)
        if named.kind == "input" and not is_target(named.name):
            fix = f"packhorse.align(batch, like=model), or .to(torch.{wanted})"
            yield Finding("input_dtype", named.name, f"input is {seen}, the model {wanted}", fix, 1, _size(t))
        elif named.kind == "parameter" or (named.kind == "buffer" and named.is_saved):
            kind: Kind = "parameter_dtype" if named.kind == "parameter" else "buffer_dtype"
            fix = f"model.to(torch.{wanted}), unless its authors keep this one in {seen}"
            yield Finding(kind, named.name, f"{named.kind} is {seen}, most of the model {wanted}", fix, 1, _size(t))


def is_target(name: str) -> bool:
    """Whether an entry of a batch is what outputs are compared with."""
    return name.rpartition(".")[2] in TARGETS


def _size(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _grouped(findings: list[Finding]) -> list[Finding]:
    """One finding for all of a kind that say the same, where there are more than a few."""
    groups: dict[tuple[str, str], list[Finding]] = {}
    for finding in findings:
        groups.setdefault((finding.kind, finding.what), []).append(finding)
    return [shown for group in groups.values() for shown in (_one(group) if len(group) > EACH else group)]


def _one(group: list[Finding]) -> list[Finding]:
    first = group[0]
    where = f"{', '.join(f.where for f in group[:EACH])} and {len(group) - EACH} more"
    size = sum(f.num_bytes for f in group)
    return [Finding(first.kind, where, f"{len(group)} times: {first.what}", first.fix, len(group), size)]


# -- inputs that cost more than they have to


def judge_padding(batch: Any) -> list[Finding]:
    """From the attention mask of the batch, [rows, length]; none where there is none, or one without numbers."""
    found = dict(tensors_in(batch))
    name = next((n for n in found if n.rpartition(".")[2] == MASK), "")
    mask = found.get(name)
    if mask is None or mask.ndim != 2 or mask.device.type == "meta" or not mask.numel():
        return []
    real = (mask != 0).sum(1)
    share, longest, width = 1 - float(real.sum()) / mask.numel(), int(real.max()), mask.shape[1]
    if share <= PADDING_SHARE:
        return []
    what = f"{share:.0%} of {mask.shape[0]} x {width} positions are padding; the longest row has {longest} tokens"
    fix = "Rows of like lengths together, or packhorse.unpad(model)"
    if longest < width:
        fix = f'padding=True instead of padding="max_length" makes it {longest} wide. {fix}'
    return [Finding("padding", name, what, fix, float(real.sum()), is_hint=True)]
