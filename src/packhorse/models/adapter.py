"""A PEFT adapter (LoRA and its kin): found, checked before it is loaded, and described."""

from __future__ import annotations

import json
import struct
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from packhorse.data import Adapter
from packhorse.errors import HostileModelError, ModelError, UsageError
from packhorse.models.find import ADAPTER_CONFIG, Found, cache_note, is_hub_id
from packhorse.models.hub import Repository, download, listing
from packhorse.models.preflight import check_folder, read_object, understood

WEIGHTS = "adapter_model.safetensors"
FILES = (ADAPTER_CONFIG, WEIGHTS)
TASKS = {"SEQ_CLS": "text-classification", "FEATURE_EXTRACTION": "feature-extraction"}
MAX_HEADER_BYTES = 100 << 20  # safetensors' own limit


def find_adapter(name: str) -> Found:
    """Folder, or hub id with perhaps a revision: ORGANISATION/NAME@REVISION.

    Raises UsageError where the name can be neither, or where a folder is no adapter, ModelError where the hub has none,
    HostileModelError where its weights could run code or its config asks for code.
    """
    folder = Path(name)
    found = Found(folder.resolve(), name, None) if folder.is_dir() else _from_hub(name)
    _check(found.folder)
    return found


def _from_hub(name: str) -> Found:
    hub_id, _, revision = name.partition("@")
    if not is_hub_id(hub_id):
        raise UsageError(f"--adapter {name}: no such folder, and no hub id (ORGANISATION/NAME[@REVISION])")
    repository = Repository("--adapter", hub_id, revision or None)
    here = listing(repository)
    # One that can run code is not fetched, but its name is told.
    unsafe = [n for n in here.names if n == "adapter_model.bin"]
    files = tuple(n for n in FILES if n in here.names)
    if ADAPTER_CONFIG not in files:
        raise ModelError(f"--adapter {name}: has no {ADAPTER_CONFIG}, so it is no PEFT adapter; is it a whole model?")
    if WEIGHTS not in files:
        raise HostileModelError(f"--adapter {name}: {_no_weights(unsafe)}")
    snapshot = download(repository, here, files)
    return Found(snapshot, name, here.commit, files, "weights", cache_note(repository, here.is_cached))


def _check(folder: Path) -> None:
    if not (folder / ADAPTER_CONFIG).is_file():
        raise UsageError(f"--adapter {folder}: has no {ADAPTER_CONFIG}, so it is no PEFT adapter")
    check_folder(folder)
    config = read_object(folder / ADAPTER_CONFIG)
    if config.get("megatron_config"):  # peft then imports the module that megatron_core names
        raise HostileModelError(f"{folder / ADAPTER_CONFIG}: 'megatron_config' asks to import a module; it is not done")
    if not (folder / WEIGHTS).is_file():
        unsafe = [p.name for p in folder.glob("adapter_model.bin")]
        raise HostileModelError(f"--adapter {folder}: {_no_weights(unsafe)}")


def _no_weights(unsafe: list[str]) -> str:
    seen = f"it has {', '.join(unsafe)}, which can run code when loaded" if unsafe else "it has none"
    return f"only {WEIGHTS} is loaded; {seen}. Convert: peft_model.save_pretrained(folder)"


def check_peft(name: str, backend: str) -> None:
    """Raises UsageError where the package is missing that merges it; null loads no weights."""
    if backend != "null" and find_spec("peft") is None:
        raise UsageError(f"--adapter {name}: needs the package peft; pip install 'packhorse[peft]'")


def check_base(name: str, folder: Path, backend: str) -> None:
    """Raises UsageError for a folder that has graphs and no weights to merge into; null loads none."""
    if backend == "null" or any(folder.glob("*.safetensors")):
        return
    graphs = [p.name for pattern in ("**/*.onnx", "**/openvino_model.xml") for p in sorted(folder.glob(pattern))]
    if graphs:
        raise UsageError(
            f"--adapter {name}: is merged into weights, and {folder} has {graphs[0]} and no safetensors; give the "
            "model that this was exported from"
        )


def describe_adapter(found: Found) -> Adapter:
    """Raises ModelError where its config or the header of its weights cannot be read."""
    path = found.folder / ADAPTER_CONFIG
    config = read_object(path)
    with understood(path):
        kept = [str(n) for n in config.get("modules_to_save") or ()]
        return Adapter(
            folder=found.folder,
            task=TASKS.get(str(config.get("task_type"))),
            num_labels=_num_labels(found.folder / WEIGHTS, kept),
            base=str(config["base_model_name_or_path"]) if config.get("base_model_name_or_path") else None,
        )


def _num_labels(path: Path, kept: list[str]) -> int | None:
    """Rows of the last weight matrix of the head that it brings; None where it brings none."""
    heads = [name for name in kept if name in ("classifier", "score", "classification_head")]
    shapes = [
        (name, value["shape"])
        for name, value in _header(path).items()
        if name != "__metadata__" and name.endswith(".weight") and any(f".{h}." in f".{name}" for h in heads)
    ]
    last = sorted(shapes, key=lambda item: ("out_proj" in item[0], item[0]))
    return int(last[-1][1][0]) if last else None


def _header(path: Path) -> dict[str, Any]:
    """Names, types and shapes: https://huggingface.co/docs/safetensors, 8 bytes of length, then JSON."""
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(min(length, MAX_HEADER_BYTES)))
    except (OSError, struct.error, ValueError) as error:
        raise ModelError(f"{path}: cannot be read as safetensors: {error}") from error
    if not isinstance(header, dict):
        raise ModelError(f"{path}: its header is no JSON object")
    return header


def base_note(adapter: Adapter, name: str, model: str) -> tuple[str, ...]:
    """A note where it was trained on a model of another name."""
    same = adapter.base is None or Path(adapter.base).name == Path(model).name
    return () if same else (f"adapter {name} was trained on {adapter.base}; the model here is {model}",)
