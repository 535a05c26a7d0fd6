"""What a model folder from a stranger could do is looked at before any of it is loaded."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
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


def read_object(path: Path) -> dict[str, Any]:
    """The file's JSON object. Raises ModelError naming the file."""
    value = read_json(path)
    if not isinstance(value, dict):
        raise ModelError(f"{path}: holds a JSON {type(value).__name__}, not an object")
    return value


@contextmanager
def understood(path: Path) -> Iterator[None]:
    """A file of another shape than it has to be is a ModelError that names it."""
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise ModelError(f"{path}: not of the shape it has to be: {type(error).__name__}: {error}") from error


def check_folder(folder: Path) -> None:
    """Looks at every config and index of the folder.

    Raises HostileModelError where one asks for code or points outside.
    """
    for path in sorted(folder.rglob("*.json")):
        if path.name.endswith("config.json"):
            _check_code_keys(path)
    for path in sorted(folder.rglob("*.safetensors.index.json")):
        _check_weight_map(path)


def check_weights(folder: Path) -> None:
    """Raises RefusedError where the folder of the transformer itself has no safetensors weights."""
    if any(folder.glob("*.safetensors")):
        return
    unsafe = (".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack")
    others = sorted(p.name for p in folder.iterdir() if p.suffix in unsafe)
    seen = f"it has {', '.join(others)}, which can run code when loaded" if others else "it has none"
    raise RefusedError(f"{folder}: only safetensors weights are loaded; {seen}. Convert: model.save_pretrained(folder)")


def _check_code_keys(path: Path) -> None:
    for key, value in _items(read_json(path)):
        if key in CODE_KEYS and value:
            raise HostileModelError(f"{path}: {key!r} asks to run code that comes with the model; packhorse never does")


def _items(value: Any) -> Iterator[tuple[str, Any]]:
    """Keys with their values, at any depth."""
    if isinstance(value, dict):
        yield from value.items()
    for item in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _items(item)


def _check_weight_map(path: Path) -> None:
    names = read_object(path).get("weight_map", {})
    if not isinstance(names, dict):
        raise ModelError(f"{path}: weight_map is a JSON {type(names).__name__}, not an object")
    for name in set(map(str, names.values())):
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise HostileModelError(f"{path}: weight_map names {name!r}, which is no safetensors file beside it")


def inside(folder: Path, relative: str, source: Path) -> Path:
    """folder/relative. Raises HostileModelError where that leaves the folder."""
    path = (folder / relative).resolve()
    if not path.is_relative_to(folder.resolve()):
        raise HostileModelError(f"{source}: path {relative!r} leaves the model's folder")
    return path
