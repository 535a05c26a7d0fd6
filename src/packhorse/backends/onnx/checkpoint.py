"""A folder's safetensors as an ONNX graph: exported, proven against torch, fused or quantized, labelled."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from packhorse.backends.onnx import transform
from packhorse.backends.onnx.baked import Baked
from packhorse.backends.onnx.cache import NAME
from packhorse.backends.onnx.graph import Reduced, write_graph
from packhorse.backends.onnx.proof import proof_rows, prove
from packhorse.backends.onnx.providers import Provider
from packhorse.backends.torch.cost import measure_cost
from packhorse.backends.torch.graph_values import graph_json
from packhorse.backends.torch.weights import load_weights, max_positions
from packhorse.data import Float32s, Tokens
from packhorse.devices.gemm import DTYPES
from packhorse.errors import BatchRefusedError, ModelError
from packhorse.load_request import LoadRequest


class Expected(NamedTuple):
    """Rows and torch's values of each of them alone, one after the other, in fp32, as they can be compared."""

    rows: Tokens
    values: Float32s


def export_checkpoint(
    request: LoadRequest, provider: Provider, int8_method: str, versions: dict[str, str], folder: Path
) -> None:
    """Writes folder/model.onnx. Raises ModelError where the model cannot be exported, or gives other values then."""
    source, precision, path = request.description, request.precision, folder / NAME
    dtype = DTYPES.get(precision, torch.float32)
    weights = load_weights(source, request.reduction, dtype)
    limit = max_positions(weights)
    try:
        module = Reduced(weights, request).eval()
        expected = _expected(module, request, limit) if dtype == torch.float32 else None
        cost = measure_cost(module.model, source, _first_two(request.trial), request.reduction)
    except (RuntimeError, ValueError, TypeError, IndexError, AttributeError, BatchRefusedError) as failure:
        raise ModelError(f"{source.folder}: a trial forward of a few rows failed: {failure}") from failure
    attention, notes = _write_best(module, path, request, provider, expected)
    notes = (*module.notes, *notes)
    if precision == "int8":
        notes += (_quantize(path, int8_method),)
    transform.label(path, Baked(
        graph_json(request.reduction), precision, limit, module.pad_id, cost, attention, notes, versions,
    ))  # fmt: skip


def _first_two(trial: Tokens) -> torch.Tensor:
    """[2, S]: the first two rows of a trial are equal."""
    return torch.from_numpy(trial.take(np.array([0, 1])).ids.astype(np.int64).reshape(2, -1))


def _expected(module: Reduced, request: LoadRequest, positions: int | None) -> Expected:
    limit = min((n for n in (request.description.max_length, positions) if n), default=None)
    rows = proof_rows(request, limit)
    return Expected(rows, np.concatenate(module.alone(rows)))


def _write_best(
    module: Reduced, path: Path, request: LoadRequest, provider: Provider, expected: Expected | None
) -> tuple[str, tuple[str, ...]]:
    """Attention and notes of the graph written: fused where the provider can and the values are right, else eager.

    An int8 graph starts from the plain one: onnxruntime folds a bias into its int8 products only where no earlier
    fusion took it.
    """
    notes: tuple[str, ...] = ()
    if provider.has_fused_operators and request.precision != "int8":
        try:
            write_graph(module, path, fused=True)
            heads = getattr(module.model.config, "num_attention_heads", 0) or 0
            found = transform.fuse(path, heads, request.description.attention_width, request.precision)
            _prove(path, request, provider, expected, module.pad_id)
            return ("fused" if transform.operators(path)["MultiHeadAttention"] else "eager"), (found,)
        except ModelError as failure:
            notes = (f"not fused: {failure}",)
    try:
        write_graph(module, path, fused=False)
        _prove(path, request, provider, expected, module.pad_id)
    except ModelError as failure:
        raise ModelError(f"{request.description.folder}: {failure}; --backend torch runs it as it is") from failure
    return "eager", notes


def _prove(path: Path, request: LoadRequest, provider: Provider, expected: Expected | None, pad_id: int) -> None:
    if expected is not None:
        prove(path, *expected, request, provider, pad_id)


def _quantize(path: Path, method: str) -> str:
    """Quantizes the file in place. The weights of a large one lie beside it, under its own name."""
    plain = path.parent / "plain"
    plain.mkdir()
    for file in list(path.parent.glob(path.name + "*")):
        file.rename(plain / file.name)
    note = transform.quantize(plain / path.name, path, method)
    shutil.rmtree(plain)
    return note
