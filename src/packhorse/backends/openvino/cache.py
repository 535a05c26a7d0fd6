"""Converted models in the user's cache: a folder each, complete as soon as it is visible."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

from packhorse.backends.openvino.files import BIN, XML, Found
from packhorse.backends.openvino.packages import import_openvino
from packhorse.backends.openvino.record import Record, read_record
from packhorse.backends.torch.graph_values import graph_json
from packhorse.devices import host
from packhorse.errors import ModelError
from packhorse.load_request import LoadRequest

KEPT = 8  # models; the one unused for longest goes first. BERT-base takes 440 MB, in int8 110 MB
ABANDONED_S = 86_400  # an unfinished folder of that age has no process that works on it
CODE = 1  # counted up when the same model would be converted to another graph


def cache_folder() -> Path:
    return host.cache_folder() / "openvino"


def cache_key(request: LoadRequest, weights: str) -> str:
    """Of all that the graph is made from. weights: float, for fp32 and bf16 alike, or int8."""
    names = ("openvino", "torch", "transformers", *(["nncf"] if weights == "int8" else []))
    parts = {
        "code": CODE, "model": request.model_key(), "reduction": graph_json(request.reduction), "weights": weights,
        "task": request.description.task, "versions": {name: version(name) for name in names},
    }  # fmt: skip
    digest = hashlib.sha256(json.dumps(parts, sort_keys=True).encode())
    if weights == "int8":  # calibrated on these rows
        for tokens in (request.rows, request.trial):
            for array in (tokens.ids, tokens.offsets, tokens.type_ids):
                digest.update(b"-" if array is None else array.tobytes())
    return digest.hexdigest()


def is_kept(request: LoadRequest) -> bool:
    """Whether the model was converted before, and quantized where the request is for int8."""
    return (cache_folder() / cache_key(request, "int8" if request.precision == "int8" else "float")).is_dir()


def find_cached(key: str) -> Found | None:
    """None where there is none, or where it is damaged."""
    folder = cache_folder() / key
    try:
        record = read_record(folder)
        if record is None or (folder / BIN).stat().st_size != record.bin_bytes:
            return None
        model = import_openvino().Core().read_model(folder / XML, folder / BIN)
        os.utime(folder)  # used now
    except (OSError, RuntimeError, ModelError):
        return None
    return Found(model, record)


def keep(key: str, found: Found) -> Found:
    """Stores a model and reads it back, so that torch's copy of the weights can go. As it came where no cache can be:
    in a home that cannot be written, on a full disk, or where another process was faster."""
    folder = cache_folder() / key
    with contextlib.suppress(OSError):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _temporary(folder.parent) as temporary:
            save(temporary, found.model, found.record)
            if folder.exists():
                shutil.rmtree(folder)  # damaged, or find_cached would have found it
            temporary.rename(folder)
        _drop_oldest(folder.parent)
    return find_cached(key) or found


def save(folder: Path, model: Any, record: Record) -> None:
    """openvino_model.xml, .bin and packhorse.json. Raises OSError."""
    try:
        import_openvino().save_model(model, folder / XML, compress_to_fp16=False)
    except RuntimeError as error:  # what OpenVINO raises where it cannot write
        raise OSError(f"{folder}: cannot be written: {error}") from error
    dataclasses.replace(record, bin_bytes=(folder / BIN).stat().st_size).save(folder)


@contextlib.contextmanager
def _temporary(parent: Path) -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="tmp-", dir=parent))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _drop_oldest(parent: Path) -> None:
    used = {folder: folder.stat().st_mtime for folder in parent.iterdir()}
    done = sorted((f for f in used if not f.name.startswith("tmp-")), key=used.__getitem__)
    abandoned = [f for f in used if f.name.startswith("tmp-") and time.time() - used[f] > ABANDONED_S]
    for folder in [*done[:-KEPT], *abandoned]:
        shutil.rmtree(folder, ignore_errors=True)
