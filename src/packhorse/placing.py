"""What --device-map, --max-memory and --offload-folder mean, before any model is looked at."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping
from pathlib import Path

from packhorse.errors import UsageError, did_you_mean
from packhorse.generation import Placement

DEVICE_MAPS = ("auto", "balanced", "balanced_low_0", "sequential")
OFFLOADED = "disk"
UNITS = {
    "": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12,
    "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40,
}  # fmt: skip
DEVICE = re.compile(r"\d+|cpu|mps|disk")
DEVICES = "a number for a GPU (0, 1, ...), cpu, mps or disk"


def parse_placement(
    device_map: str | None, max_memory: str | None, offload_folder: str | None, tensor_parallel: bool = False
) -> Placement:
    """The flags of one command together. Raises UsageError, also where one means nothing without another."""
    check_together(device_map, max_memory, offload_folder, tensor_parallel)
    limits = {} if max_memory is None else parse_max_memory(max_memory)
    mapping = None if device_map is None else parse_device_map(device_map)
    if limits and isinstance(mapping, Mapping):
        raise UsageError(
            f"--max-memory {max_memory} with --device-map {device_map}: the file says itself where every module lies; "
            f"leave --max-memory out, or give --device-map {', '.join(DEVICE_MAPS)}"
        )
    return Placement(mapping, limits, offload_folder, tensor_parallel)


def as_planned(placement: Placement, device_map: Mapping[str, str] | None) -> Placement:
    """Of a run that is gone on with: auto and its kin become the map that the run began with, since what is free now
    would make another. A map of a file stays. device_map: None where the run had none."""
    if device_map is None or not isinstance(placement.device_map, str):
        return placement
    return dataclasses.replace(placement, device_map=device_map, max_memory={}, is_planned=True)


def check_together(
    device_map: str | None, max_memory: str | None, offload_folder: str | None, tensor_parallel: bool
) -> None:
    """Raises UsageError where one of them means nothing without another, or excludes it."""
    if tensor_parallel and device_map is not None:
        raise UsageError(
            f"--tensor-parallel with --device-map {device_map}: the first cuts every layer over all devices, the "
            "second puts whole layers on different ones; leave one of them out"
        )
    for flag, value in (("--max-memory", max_memory), ("--offload-folder", offload_folder)):
        if value is not None and device_map is None:
            raise UsageError(
                f"{flag} {value}: says where layers may lie, which --device-map decides: add --device-map auto"
            )


def parse_max_memory(text: str) -> dict[str, int]:
    """`0=16GB,cpu=60GB` -> bytes by device. GB is 10^9 bytes, GiB 2^30. Raises UsageError."""
    found: dict[str, int] = {}
    for part in text.split(","):
        device, equals, size = (piece.strip() for piece in part.partition("="))
        if not equals:
            raise UsageError(f"--max-memory {text}: {part.strip()!r} is not DEVICE=SIZE, as in 0=16GB,cpu=60GB")
        if not DEVICE.fullmatch(device):
            hint = did_you_mean(device, ("cpu", "mps", "disk")) or _number_alone(device)
            raise UsageError(f"--max-memory {text}: {device!r} is no device; legal are {DEVICES}{hint}")
        device = str(int(device)) if device.isdigit() else device
        if device in found:
            raise UsageError(f"--max-memory {text}: {device} stands there twice")
        found[device] = _num_bytes(size, text)
    return found


def _number_alone(device: str) -> str:
    kind, _, index = device.partition(":")
    return f"; say {index} for {device}" if kind in ("cuda", "xpu", "gpu") and index.isdigit() else ""


def _num_bytes(size: str, text: str) -> int:
    seen = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([A-Za-z]*)", size)
    if seen is None or seen[2].upper() not in UNITS:
        raise UsageError(
            f"--max-memory {text}: {size!r} is no size; a number and a unit: KB, MB, GB, TB (powers of 1,000) or "
            "KiB, MiB, GiB, TiB (of 1,024), as in 16GB"
        )
    if seen[2].endswith("b"):  # accelerate reads Gb as gigabits
        raise UsageError(f"--max-memory {text}: {size!r} could mean bits; write {size[:-1]}B for bytes")
    return int(float(seen[1]) * UNITS[seen[2].upper()])


def parse_device_map(text: str) -> str | dict[str, str]:
    """auto, balanced, balanced_low_0 or sequential as it stands; of FILE.json its modules' devices: {"model.layers.0":
    "0", "lm_head": "cpu"}, where "" means all that is not named. Raises UsageError."""
    if text in DEVICE_MAPS:
        return text
    path = Path(text)
    if path.suffix != ".json":
        raise UsageError(
            f"--device-map {text}: legal are {', '.join(DEVICE_MAPS)}, or FILE.json with a device for every module"
            f"{did_you_mean(text, DEVICE_MAPS)}"
        )
    try:
        mapping = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"--device-map {text}: cannot be read as JSON: {error}") from error
    if not isinstance(mapping, dict) or not mapping:
        raise UsageError(f'--device-map {text}: has to be an object of modules and devices, as {{"model.norm": "cpu"}}')
    return {name: _device_of(name, value, text) for name, value in mapping.items()}


def _device_of(name: str, value: object, text: str) -> str:
    device = str(value) if isinstance(value, int | str) and not isinstance(value, bool) else ""
    device = re.sub(r"^(cuda|xpu):(?=\d+$)", "", device)
    if not DEVICE.fullmatch(device):
        raise UsageError(f"--device-map {text}: {name!r} is put on {json.dumps(value)}; legal are {DEVICES}")
    return device
