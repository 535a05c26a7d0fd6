"""The .onnx file that a request runs: one of the folder's, one made from it, or one exported from its weights."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import NamedTuple

from packhorse.backends.onnx import transform
from packhorse.backends.onnx.cache import NAME, cache_folder, cached
from packhorse.backends.onnx.files import GraphFacts, choose_file, read_graph
from packhorse.backends.onnx.needs import need
from packhorse.backends.onnx.providers import Provider
from packhorse.backends.torch.graph_values import graph_json
from packhorse.data import Reduction
from packhorse.errors import UsageError
from packhorse.load_request import LoadRequest

CODE = 2  # counted up when the same model would be made another file, or labelled in another way


class Built(NamedTuple):
    path: Path
    folder: Path  # that nothing in the file may lead out of
    facts: GraphFacts
    notes: tuple[str, ...] = ()


def versions() -> dict[str, str]:
    """Of what a graph depends on."""
    names = ("onnx", "onnxruntime", "onnxscript", "torch", "transformers")
    return {name: str(need(name).__version__) for name in names}


def build(request: LoadRequest, provider: Provider, prefer_weights: bool = False) -> Built:
    """Raises UsageError, ModelError or HostileModelError, each naming the file."""
    prefer_weights = prefer_weights or request.description.source == "weights"
    source = choose_file(request.description.folder, request.onnx_file, prefer_weights)
    if source is None:
        return _from_weights(request, provider)
    return _from_file(request, provider, source, read_graph(source, request.description.folder))


def is_built(request: LoadRequest, provider: Provider) -> bool:
    """Whether the folder holds a file, or the cache what would be made of its weights."""
    about = request.description
    if choose_file(about.folder, request.onnx_file, about.source == "weights") is not None:
        return True
    return (cache_folder() / _weights_key(request, provider) / NAME).is_file()


def _weights_key(request: LoadRequest, provider: Provider) -> str:
    has_types = any(t.type_ids is not None for t in (request.trial, request.rows))
    return _key(request, _kind(request, provider), has_types, versions())


def _kind(request: LoadRequest, provider: Provider) -> tuple[str, str]:
    """Of the operators, and how int8 is made."""
    return "fused" if provider.has_fused_operators else "plain", int8_method(request.reduction, provider)


def _from_weights(request: LoadRequest, provider: Provider) -> Built:
    from packhorse.backends.onnx.checkpoint import export_checkpoint

    kind, seen, key = _kind(request, provider), versions(), _weights_key(request, provider)
    home = cached(key, lambda folder: export_checkpoint(request, provider, kind[1], seen, folder))
    return Built(home / NAME, home, read_graph(home / NAME, home))


def _from_file(request: LoadRequest, provider: Provider, source: Path, facts: GraphFacts) -> Built:
    """The file as it stands, or its int8 or fp16 version, from the cache or made now."""
    folder, precision = request.description.folder, request.precision
    seen, name = precision_of(facts), source.relative_to(folder)
    if precision == seen:
        return Built(source, folder, facts, (f"runs {name} of the model's folder",))
    if precision == "fp32":
        note = f"runs {name} of the model's folder, whose weights are {seen}, and stay so"
        return Built(source, folder, facts, (note,))
    if precision == "bf16" or seen != "fp32":
        raise UsageError(f"--precision {precision}: {source} holds {seen}; only fp32 is made int8 or fp16 here")
    method = int8_method(request.reduction, provider)

    def make(target: Path) -> None:
        path = target / NAME
        note = transform.quantize(source, path, method) if precision == "int8" else transform.halve(source, path)
        if facts.baked is not None:
            notes = (*facts.baked.notes, note)
            transform.label(path, dataclasses.replace(facts.baked, precision=precision, notes=notes))

    home = cached(_key(request, str(name), method, versions()), make)
    return Built(
        home / NAME, home, read_graph(home / NAME, home), (f"{precision} made from {name} of the model's folder",)
    )


def int8_method(reduction: Reduction, provider: Provider) -> str:
    """Scores between 0 and 1 bear the coarser, faster way, others do not; GPUs have no kernels for it."""
    is_score = reduction.kind == "classify" and reduction.activation != "none"
    return "dynamic" if is_score and provider.device == "cpu" else "blocks"


def precision_of(facts: GraphFacts) -> str:
    if facts.baked is not None:
        return facts.baked.precision
    return "int8" if facts.is_quantized else "fp16" if facts.is_half else "fp32"


def _key(request: LoadRequest, *parts: object) -> str:
    values = [CODE, request.model_key(), graph_json(request.reduction), request.precision, *parts]
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
