"""What a model folder from a stranger could do is looked at before any of it is loaded."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from packhorse.errors import HostileModelError, ModelError, RefusedError

# Keys with which a config names code: transformers' remote code, its internal attention hook (CVE-2026-4372)
# and pipelines of its own.
CODE_KEYS = ("auto_map", "custom_pipelines", "_attn_implementation_internal", "trust_remote_code")


def read_json(path: Path) -> Any:
    """The file's JSON. Raises ModelError naming the file."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{path}: cannot be read as JSON: {error}") from error


def check_folder(folder: Path, needs_weights: bool = True) -> None:
    """Looks at every config and index of the folder.

    Raises HostileModelError where one asks for code or points outside, RefusedError where no weights are safetensors.
    """
    for path in sorted(folder.rglob("*.json")):
        if path.name.endswith("config.json"):
            _check_code_keys(path)
    for path in sorted(folder.rglob("*.safetensors.index.json")):
        _check_weight_map(path)
    if needs_weights and not any(folder.rglob("*.safetensors")):
        others = sorted(
            p.name for p in folder.rglob("*") if p.suffix in (".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack")
        )
        seen = f"it has {', '.join(others)}, which can run code when loaded" if others else "it has no weights at all"
        raise RefusedError(
            f"{folder}: only safetensors weights are loaded; {seen}. Convert: model.save_pretrained(folder)"
        )


def _check_code_keys(path: Path) -> None:
    for key in _keys(read_json(path)):
        if key in CODE_KEYS:
            raise HostileModelError(f"{path}: {key!r} asks to run code that comes with the model; packhorse never does")


def _keys(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        yield from value
        for item in value.values():
            yield from _keys(item)
    elif isinstance(value, list):
        for item in value:
            yield from _keys(item)


def _check_weight_map(path: Path) -> None:
    index = read_json(path)
    names = index.get("weight_map", {}).values() if isinstance(index, dict) else ()
    for name in set(names):
        if not isinstance(name, str) or Path(name).name != name or not name.endswith(".safetensors"):
            raise HostileModelError(f"{path}: weight_map names {name!r}, which is no safetensors file beside it")


def inside(folder: Path, relative: str, source: Path) -> Path:
    """folder/relative. Raises HostileModelError where that leaves the folder."""
    path = (folder / relative).resolve()
    if not path.is_relative_to(folder.resolve()):
        raise HostileModelError(f"{source}: path {relative!r} leaves the model's folder")
    return path
