"""From a torch checkpoint to a graph that was proven equal to it."""

from __future__ import annotations

import warnings
from importlib import import_module
from typing import Any

import numpy as np
import torch

from packhorse.backends.openvino.files import Found
from packhorse.backends.openvino.graph import Graph
from packhorse.backends.openvino.packages import import_openvino, silenced
from packhorse.backends.openvino.record import Record
from packhorse.backends.openvino.runner import Runner, Streams, model_inputs
from packhorse.backends.torch import load_tokenizer
from packhorse.backends.torch.cost import measure_cost
from packhorse.backends.torch.graph_values import graph_json, input_names, output_names
from packhorse.backends.torch.quiet import quiet
from packhorse.backends.torch.weights import max_positions
from packhorse.data import Batch, Float32s, Tokens
from packhorse.errors import BatchRefusedError, ModelError
from packhorse.load_request import LoadRequest
from packhorse.packing.probe import TOLERANCE, error, probe_rows

# transformers' own choice of attention first; eager is plain operators, which any tracer follows.
ATTENTIONS = (None, "eager")


def convert(request: LoadRequest) -> Found:
    """The graph with the reduction inside, and what is told beside it. Raises ModelError where it cannot be converted
    or gives other values than torch on the trial and a few rows of the job."""
    takes_type_ids = load_tokenizer(request.description).takes_type_ids
    failures = []
    for attention in ATTENTIONS:
        try:
            return _proven(Graph(request, takes_type_ids, attention), request)
        except _failures() as failure:
            failures.append(str(failure).strip().splitlines()[-1])
    raise ModelError(
        f"{request.description.folder}: OpenVINO cannot take this model ({'; '.join(failures)}). Choose --backend torch"
    )


def _proven(graph: Graph, request: LoadRequest) -> Found:
    max_length = max_positions(graph.model)
    first_two = torch.from_numpy(Batch(request.trial.take(np.array([0, 1]))).padded(graph.pad_id)[0])
    record = Record(
        reduction=graph_json(request.reduction),
        pad_id=graph.pad_id,
        cost=measure_cost(graph.model, request.description, first_two, request.reduction),
        max_length=max_length,
        weights="float",
        notes=graph.notes,
    )
    found = Found(_traced(graph, request.trial), record)
    limits = [n for n in (max_length, request.description.max_length) if n]
    rows = probe_rows(request.trial, request.rows, min(limits, default=None))
    runner = Runner(found, request.reduction, "fp32", Streams(1, request.workers * request.threads))
    _prove(runner, graph.alone(rows), rows)
    return found


def _prove(runner: Runner, expected: list[Float32s], rows: Tokens) -> None:
    """Each row alone, and two rows of one length together. expected: torch's values of each row. Raises ModelError."""
    wanted, two = np.concatenate(expected), np.concatenate(expected[:2])
    alone = error(wanted, np.concatenate(runner.alone(rows)))
    pair = runner.comparable(Batch(rows.take(np.array([0, 1]))))
    scale = max(float(np.abs(wanted).max(initial=0.0)), 1e-6)
    together = float(np.abs(pair - two).max()) / scale if pair.shape == two.shape else float("inf")
    runner.close()
    if max(alone, together) > TOLERANCE["fp32"]:
        raise ModelError(f"the converted model is {max(alone, together):.2g} from torch's values")


def _traced(graph: Graph, trial: Tokens) -> Any:
    """An openvino.Model of any batch size and length."""
    reduction = graph.reducer.reduction
    types = ["token_type_ids"] if graph.takes_type_ids else []
    names = ("input_ids", "attention_mask", *types, *input_names(reduction))
    example = model_inputs(Batch(trial), names, graph.pad_id, reduction)  # of different lengths: the mask matters
    with quiet(), silenced(), warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore")  # tracers warn of every Python number; the proof tells what matters
        model = import_openvino().convert_model(
            graph, example_input={name: torch.from_numpy(array) for name, array in example.items()}
        )
    for output, name in zip(model.outputs, output_names(reduction), strict=True):
        output.get_tensor().set_names({name})
    return model


def _failures() -> tuple[type[Exception], ...]:
    frontend = import_module("openvino.frontend")
    own = (RuntimeError, ValueError, TypeError, AttributeError, IndexError, KeyError, NotImplementedError)
    foreign = (frontend.OpConversionFailure, frontend.OpValidationFailure, frontend.GeneralFailure)
    return (*own, *foreign, BatchRefusedError, ModelError)
