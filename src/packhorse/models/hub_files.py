"""Which files of a hub repository are downloaded: one set of weights, or one graph, and the small files around it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import PurePosixPath
from typing import Literal, NamedTuple

from packhorse.errors import ModelError, UsageError

SMALL = ("*.json", "*.txt", "*.model", "*.spm", "*.jinja", "artifact.metadata")
GRAPH_FOLDERS = ("onnx/*", "openvino/*")
UNSAFE = (".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack")
ONNX_DEFAULTS = ("model.onnx", "onnx/model.onnx")
XML, BIN = "openvino_model.xml", "openvino_model.bin"
SENTENCE_MODULE = re.compile(r"\d+_\w+")  # folders of sentence-transformers' modules: 2_Dense
SHARD = re.compile(r"model-\d+-of-\d+\.safetensors")

Source = Literal["folder", "weights", "graph"]


class Wanted(NamedTuple):
    """What a model's files are for. weights: for an export, which is made of weights where there are any."""

    backend: str = "auto"
    onnx_file: str | None = None
    weights: bool = False


class Selection(NamedTuple):
    files: tuple[str, ...]  # paths in the repository
    source: Source  # whether weights or a graph are among them


def select(names: Sequence[str], wanted: Wanted, where: str) -> Selection:
    """Of a repository's files those that the backend loads; `where` names the repository in errors.

    onnx and openvino take a graph of their own where one can be meant, all others weights; auto takes a graph only
    where there are no weights. Raises UsageError for --onnx-file, ModelError where nothing can be loaded.
    """
    small = tuple(n for n in names if _fits(n, SMALL) and not _fits(n, GRAPH_FOLDERS))
    if wanted.backend == "null":
        return Selection(small, "weights")
    weights = _weights(names)
    graph = _graph(names, wanted, bool(weights), where)
    prefers_graph = wanted.backend in ("onnx", "openvino") and not wanted.weights
    if graph and (prefers_graph or not weights):
        return Selection((*small, *graph), "graph")
    if not weights:
        raise ModelError(f"{where}: {_nothing_to_load(names)}")
    return Selection((*small, *weights), "weights")


def _fits(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch(name, pattern) for pattern in patterns)


def _weights(names: Sequence[str]) -> tuple[str, ...]:
    """Of the model and of sentence-transformers' modules, in each folder the file or the shards that transformers
    reads: not a second copy (consolidated.safetensors), not another precision (model.fp16.safetensors)."""
    by_folder: dict[str, list[str]] = {}
    for name in names:
        folder = str(PurePosixPath(name).parent)
        if name.endswith(".safetensors") and (folder == "." or SENTENCE_MODULE.fullmatch(folder)):
            by_folder.setdefault(folder, []).append(name)
    return tuple(name for found in by_folder.values() for name in _of_folder(found))


def _of_folder(names: list[str]) -> list[str]:
    whole = [n for n in names if PurePosixPath(n).name == "model.safetensors"]
    shards = [n for n in names if SHARD.fullmatch(PurePosixPath(n).name)]
    return whole or shards or names


def _graph(names: Sequence[str], wanted: Wanted, has_weights: bool, where: str) -> tuple[str, ...]:
    openvino = _openvino(names) if wanted.backend in ("auto", "openvino") else ()
    if openvino or wanted.backend == "openvino":
        return openvino
    return _onnx(names, wanted, has_weights, where) if wanted.backend in ("auto", "onnx") else ()


def _openvino(names: Sequence[str]) -> tuple[str, ...]:
    """The graph, its weights and the record of an export, from the first place that has both files."""
    for place in ("", "openvino/"):
        if place + XML in names and place + BIN in names:
            record = place + "packhorse.json"
            return (place + XML, place + BIN, *([record] if place and record in names else []))
    return ()


def _onnx(names: Sequence[str], wanted: Wanted, has_weights: bool, where: str) -> tuple[str, ...]:
    """The file asked for, model.onnx or the only one; and beside a large one what has its name: its weights."""
    here = [n for n in names if n.endswith(".onnx") and str(PurePosixPath(n).parent) in (".", "onnx")]
    if wanted.onnx_file is not None and wanted.onnx_file not in names:
        raise UsageError(f"--onnx-file {wanted.onnx_file}: {where} has {', '.join(here) or 'no .onnx file'}")
    chosen = wanted.onnx_file or next((n for n in ONNX_DEFAULTS if n in here), here[0] if len(here) == 1 else None)
    if chosen is not None:
        return tuple(n for n in names if n.startswith(chosen))
    if here and not has_weights:
        raise UsageError(f"{where}: which of its ONNX files? It has {', '.join(here)}; say --onnx-file")
    return ()


def _nothing_to_load(names: Sequence[str]) -> str:
    """Why, and what to do."""
    unsafe = [n for n in names if n.endswith(UNSAFE)]
    if not unsafe:
        return "has neither safetensors weights nor a graph for ONNX Runtime or OpenVINO; is it a transformers model?"
    return (
        f"has no safetensors weights; it has {', '.join(unsafe[:3])}, which can run code when loaded, so it is not. "
        "Look for a converted copy (--revision refs/pr/1, where its authors were offered one), or convert it: "
        "model.save_pretrained(folder) in an environment without anything to lose"
    )
