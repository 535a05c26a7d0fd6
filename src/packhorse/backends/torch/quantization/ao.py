"""torchao: int8 and int4 weights, int8 with activations quantized as they come, float8."""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Mapping, Sequence
from typing import Any

from packhorse.backends.torch.quantization.reading import (
    FLAG,
    Read,
    boolean,
    dtype_of,
    names,
    number,
    one_of,
    read_options,
    whole_number,
)
from packhorse.errors import UsageError, did_you_mean

SKIPPED = "modules_to_not_convert"
# By --precision; the first is the usual one, where the device has it.
TYPES: Mapping[str, tuple[str, ...]] = {
    "int8": ("int8_weight_only", "int8_dynamic"),
    "int4": ("int4_weight_only",),
    "fp8": ("float8_dynamic", "float8_weight_only"),
}
FP8_CAPABILITY = (8, 9)  # NVIDIA's, with float8 products
GROUP = 128  # weights that share a scale and a zero point, int4; torchao's own choice
GROUPS = (32, 64, 128, 256)  # that int4 products have, on a CPU (tinygemm's) as on a GPU
CPU_ROWS = 16  # output features: the CPU's int4 product takes multiples of them
FIXED = ("version", "set_inductor_config")
GRANULARITIES = ("per_row", "per_tensor")


def type_of(precision: str, options: Mapping[str, Any], device: str) -> str:
    """The `type` of the options, else the usual one. Raises UsageError where precision or device do not have it."""
    legal = TYPES[precision]
    asked = options.get("type")
    if asked is None:
        return next(name for name in legal if _why_not(name, device) is None)
    if asked not in legal:
        raise UsageError(
            f"{FLAG} type={asked}: --precision {precision} has {', '.join(legal)}{did_you_mean(str(asked), legal)}"
        )
    why = _why_not(asked, device)
    if why is not None:
        raise UsageError(f"{FLAG} type={asked}: {why}")
    return str(asked)


def config(precision: str, options: Mapping[str, Any], device: str, skipped: Sequence[str] | None) -> Any:
    """A TorchAoConfig. skipped: modules that stay as they are. Raises UsageError."""
    from transformers import TorchAoConfig

    kind = type_of(precision, options, device)
    cls, usual = _class_of(kind, device)
    chosen = read_options(
        options, {"type": one_of(TYPES[precision]), **_readers(cls), SKIPPED: names}, f"torchao {kind}"
    )
    group = chosen.get("group_size", GROUP)
    if precision == "int4" and group not in GROUPS:
        raise UsageError(f"{FLAG} group_size={group}: int4 has groups of {', '.join(map(str, GROUPS))}")
    chosen.pop("type", None)
    kept = [*(skipped or ()), *chosen.pop(SKIPPED, ())]
    try:
        made = cls(**usual | _with_group(cls, chosen))
    except (AssertionError, ValueError, TypeError, NotImplementedError) as error:
        given = " ".join(f"{name}={value}" for name, value in options.items())
        raise UsageError(f"{FLAG} {given}: torchao refuses it: {error}") from error
    return TorchAoConfig(made, modules_to_not_convert=kept or None)


def fits(precision: str, options: Mapping[str, Any], device: str, out_features: int, in_features: int) -> bool:
    """Whether a layer of that shape can be quantized: whole groups, and on a CPU rows by 16 for int4. torchao leaves
    the first kind as it is without a word, and ends the load at the second."""
    group = options.get("group_size", GROUP if precision == "int4" else 1)
    rows = CPU_ROWS if precision == "int4" and device == "cpu" else 1
    return isinstance(group, int) and group > 0 and in_features % group == 0 and out_features % rows == 0


def _why_not(kind: str, device: str) -> str | None:
    """Why a device has no such products, and what to do instead."""
    if kind != "float8_dynamic":
        return None
    needs = "float8 products need an NVIDIA GPU of compute capability 8.9 or more"
    instead = "type=float8_weight_only, or --precision int8, runs here"
    if not device.startswith("cuda"):
        return f"{needs}, the device is {device}; {instead}"
    import torch

    capability = torch.cuda.get_device_capability(device)
    if capability >= FP8_CAPABILITY or torch.version.hip is not None:
        return None
    return f"{needs}, {device} has {'.'.join(map(str, capability))}; {instead}"


def _class_of(kind: str, device: str) -> tuple[Any, dict[str, Any]]:
    """torchao's config class, and what we set in it: nothing of inductor's, which belongs to the whole process."""
    from torchao import quantization

    usual = {"set_inductor_config": False}
    if kind == "int4_weight_only" and device == "cpu":  # the CPU's own order of bytes is still in torchao's prototypes
        from torchao.prototype.quantization.int4 import PrototypeInt4WeightOnlyConfig

        return PrototypeInt4WeightOnlyConfig, usual
    if kind == "int4_weight_only":  # torchao's own choice, plain, needs a package of kernels beside it
        return quantization.Int4WeightOnlyConfig, usual | {"int4_packing_format": "tile_packed_to_4d"}
    found = {
        "int8_weight_only": quantization.Int8WeightOnlyConfig,
        "int8_dynamic": quantization.Int8DynamicActivationInt8WeightConfig,
        "float8_weight_only": quantization.Float8WeightOnlyConfig,
        "float8_dynamic": quantization.Float8DynamicActivationFloat8WeightConfig,
    }
    return found[kind], usual


def _readers(cls: Any) -> dict[str, Read]:
    """By the name of each field of a config class that text or a number can set, and that changes this model alone."""
    found: dict[str, Read] = {}
    for field in dataclasses.fields(cls):
        if field.name == "granularity":
            found[field.name] = _granularity
        elif field.name == "group_size":
            found[field.name] = whole_number
        elif field.name not in FIXED and (read := _reader_of(field.default)) is not None:
            found[field.name] = read
    return found


def _reader_of(default: Any) -> Read | None:
    import torch

    if isinstance(default, enum.Enum):
        return _member_of(type(default))
    if isinstance(default, torch.dtype):
        return dtype_of(("float8_e4m3fn", "float8_e5m2") if "float8" in str(default) else ("bfloat16", "float32"))
    if isinstance(default, bool):
        return boolean
    return whole_number if isinstance(default, int) else number if isinstance(default, float) else None


def _member_of(kind: type[enum.Enum]) -> Read:
    members = {member.name.lower(): member for member in kind}
    words = one_of(members)
    return lambda name, value: members[words(name, str(value).lower())]


def _granularity(name: str, value: Any) -> Any:
    from torchao.quantization import PerRow, PerTensor

    return PerRow() if one_of(GRANULARITIES)(name, value) == "per_row" else PerTensor()


def _with_group(cls: Any, chosen: dict[str, Any]) -> dict[str, Any]:
    """group_size of int8 weights is a granularity by now."""
    if "Int8WeightOnly" not in cls.__name__ or "group_size" not in chosen:
        return chosen
    from torchao.quantization import PerGroup

    rest = {name: value for name, value in chosen.items() if name != "group_size"}
    return rest | {"granularity": PerGroup(chosen["group_size"])}
