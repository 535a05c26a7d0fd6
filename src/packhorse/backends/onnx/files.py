"""Which .onnx file of a model's folder is run, and what it says, read before onnxruntime sees it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from packhorse.backends.onnx.baked import KEY, Baked
from packhorse.backends.onnx.needs import need
from packhorse.errors import HostileModelError, ModelError, UsageError

DEFAULTS = ("model.onnx", "onnx/model.onnx")
DOMAINS = ("", "ai.onnx", "ai.onnx.ml", "com.microsoft")
# Operators whose second input is a weight that every position is multiplied with.
LINEAR = ("MatMul", "Gemm", "FusedMatMul", "FusedGemm", "MatMulInteger", "MatMulIntegerToFloat",
          "DynamicQuantizeMatMul", "Attention", "QAttention", "MatMulNBits")  # fmt: skip
QUANTIZED = ("MatMulInteger", "DynamicQuantizeLinear", "DequantizeLinear", "MatMulIntegerToFloat", "QLinearMatMul",
             "DynamicQuantizeMatMul", "QAttention", "MatMulNBits")  # fmt: skip
PASSED = ("Transpose", "Cast", "DequantizeLinear", "Identity")  # through which a weight stays the weight


@dataclass(frozen=True, slots=True)
class GraphFacts:
    """What a .onnx file says about itself."""

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    baked: Baked | None  # of a file that packhorse exported
    per_token: float  # FLOPs of its linear layers
    per_row: float
    is_quantized: bool
    is_half: bool  # whether weights are fp16 or bf16
    external: tuple[str, ...]  # files beside it that hold its weights
    weight_bytes: int  # of the file and those beside it: all but a little of that is weights


def choose_file(folder: Path, asked: str | None, prefer_weights: bool = False) -> Path | None:
    """The .onnx file to run; None where there are weights to export instead.

    Raises UsageError where none, or one of several, can be meant, HostileModelError where it lies outside.
    """
    here = [str(p.relative_to(folder)) for p in sorted([*folder.glob("*.onnx"), *folder.glob("onnx/*.onnx")])]
    has_weights = any(folder.glob("*.safetensors"))
    listing = ", ".join(here) or "no .onnx file"
    if asked is not None:
        if not asked.endswith(".onnx") or (not _leaves(asked) and not (folder / asked).is_file()):
            raise UsageError(f"--onnx-file {asked}: no such .onnx file; {folder} has {listing}")
        return inside(folder, asked, folder)
    if has_weights and prefer_weights:
        return None
    chosen = next((name for name in DEFAULTS if name in here), here[0] if len(here) == 1 else None)
    if chosen is not None:
        return inside(folder, chosen, folder)
    if has_weights:
        return None
    if not here:
        raise UsageError(f"{folder}: has neither a .onnx file nor safetensors weights that could be exported")
    raise UsageError(f"{folder}: which of its ONNX files? It has {listing}; say --onnx-file")


def inside(folder: Path, relative: str, source: Path) -> Path:
    """folder/relative. Raises HostileModelError where that leaves the folder."""
    root = folder.resolve()
    roots = [root]
    if root.parent.name == "snapshots":  # the hub's cache: files are links into the blobs beside it
        roots.append(root.parent.parent / "blobs")
    path = folder / relative
    if _leaves(relative) or not any(path.resolve().is_relative_to(r) for r in roots):
        raise HostileModelError(f"{source}: path {relative!r} leaves the model's folder")
    return path


def _leaves(relative: str) -> bool:
    plain = PurePosixPath(relative.replace("\\", "/"))
    return plain.is_absolute() or ".." in plain.parts or ":" in (plain.parts or ("",))[0]


def read_graph(path: Path, folder: Path) -> GraphFacts:
    """Raises ModelError where it is no ONNX file, HostileModelError where it reaches outside the model's folder."""
    onnx = need("onnx")
    try:
        model = onnx.load(str(path), load_external_data=False)
    except Exception as error:
        raise ModelError(f"{path}: cannot be read as ONNX: {error}") from error
    nodes, tensors = _check(model, path)
    external = {e.value for t in tensors for e in t.external_data if e.key == "location"}
    for location in external:
        lexical = "" if _leaves(location) else str((path.parent / location).relative_to(folder))
        inside(folder, lexical or location, path)
    weights = {t.name: t for t in model.graph.initializer}
    per_token, per_row = _flops(nodes, weights)
    half = (onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16)
    props = {p.key: p.value for p in model.metadata_props}
    return GraphFacts(
        inputs=tuple(i.name for i in model.graph.input if i.name not in weights),
        outputs=tuple(o.name for o in model.graph.output),
        baked=_baked(props, path),
        per_token=per_token,
        per_row=per_row,
        is_quantized=any(n.op_type in QUANTIZED for n in nodes),
        is_half=any(t.data_type in half and len(t.dims) == 2 for t in tensors),
        external=tuple(sorted(external)),
        weight_bytes=sum(_num_bytes(path.parent / name, path) for name in {path.name, *external}),
    )


def _check(model: Any, path: Path) -> tuple[list[Any], list[Any]]:
    """Its nodes and tensors, at any depth, none of which may ask for files outside or for code."""
    graphs = [model.graph, *model.functions]
    nodes = [n for graph in graphs for n in _nodes(graph.node)]
    tensors = [*model.graph.initializer, *(v for s in model.graph.sparse_initializer for v in (s.values, s.indices))]
    for node in nodes:
        tensors += _tensors(node)
        if node.op_type == "EPContext":
            raise HostileModelError(f"{path}: node {node.name!r} brings a compiled engine, which is code")
    own = {f.domain for f in model.functions}
    foreign = sorted({n.domain for n in nodes} - set(DOMAINS) - own)
    if foreign:
        raise HostileModelError(
            f"{path}: operators of {', '.join(foreign)} need a library of their own; none is loaded"
        )
    return nodes, tensors


def _num_bytes(file: Path, source: Path) -> int:
    try:
        return file.stat().st_size
    except OSError as error:
        raise ModelError(f"{source}: its weights in {file.name} cannot be read: {error}") from error


def _nodes(nodes: Any) -> Iterator[Any]:
    for node in nodes:
        yield node
        for attribute in node.attribute:
            for graph in (attribute.g, *attribute.graphs):
                yield from _nodes(graph.node)


def _tensors(node: Any) -> Iterator[Any]:
    for attribute in node.attribute:
        yield from (attribute.t, *attribute.tensors, attribute.sparse_tensor.values, attribute.sparse_tensor.indices)
        for graph in (attribute.g, *attribute.graphs):
            yield from graph.initializer


def _flops(nodes: list[Any], weights: dict[str, Any]) -> tuple[float, float]:
    """2 FLOPs a weight. A Gemm takes two dimensions, so beside MatMuls it is a head's layer, which runs once a row."""
    source = {n.output[0]: n.input[0] for n in nodes if n.op_type in PASSED and n.input and n.output}
    sums = {True: 0.0, False: 0.0}
    for node in nodes:
        if node.op_type not in LINEAR or len(node.input) < 2:
            continue
        name = node.input[1]
        while name in source and name not in weights:
            name = source[name]
        if name in weights and len(weights[name].dims) == 2:
            rows, columns = weights[name].dims
            sums[node.op_type == "Gemm"] += 2.0 * rows * columns
    return (sums[False], sums[True]) if sums[False] else (sums[True], 0.0)


def _baked(props: dict[str, str], path: Path) -> Baked | None:
    if KEY not in props:
        return None
    try:
        return Baked.from_json(json.loads(props[KEY]))
    except (KeyError, TypeError, ValueError) as error:
        raise ModelError(f"{path}: its metadata {KEY!r} is not of the shape it has to be: {error}") from error
