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
from packhorse.backends.torch.quiet import quiet
from packhorse.backends.torch.reduce import Reducer
from packhorse.backends.torch.weights import max_positions
from packhorse.data import Batch, Float32s, Tokens, reduction_json
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
        graph = Graph(request, takes_type_ids, attention)
        try:
            return _proven(graph, request)
        except _failures() as failure:
            failures.append(str(failure).strip().splitlines()[-1])
    raise ModelError(
        f"{request.description.folder}: OpenVINO cannot take this model ({'; '.join(failures)}). Choose --backend torch"
    )


def _proven(graph: Graph, request: LoadRequest) -> Found:
    max_length = max_positions(graph.model)
    first_two = torch.from_numpy(Batch(request.trial.take(np.array([0, 1]))).padded(graph.pad_id)[0])
    record = Record(
        reduction=reduction_json(request.reduction),
        pad_id=graph.pad_id,
        cost=measure_cost(graph.model, request.description, first_two),
        max_length=max_length,
        weights="float",
    )
    found = Found(_traced(graph, request.trial), record)
    limits = [n for n in (max_length, request.description.max_length) if n]
    rows = probe_rows(request.trial, request.rows, min(limits, default=None))
    runner = Runner(found, request.reduction, "fp32", Streams(1, request.workers * request.threads))
    _prove(runner, _torch_values(graph, request, rows), rows)
    return found


def _prove(runner: Runner, expected: Float32s, rows: Tokens) -> None:
    """Each row alone, and two rows of one length together. Raises ModelError."""
    alone = error(expected, runner.values_alone(rows))
    pair = runner.forward(Batch(rows.take(np.array([0, 1])))).numpy()
    scale = max(float(np.abs(expected).max()), 1e-6)
    together = float(np.abs(pair - expected[:2]).max()) / scale if pair.shape == expected[:2].shape else float("inf")
    runner.close()
    if max(alone, together) > TOLERANCE["fp32"]:
        raise ModelError(f"the converted model is {max(alone, together):.2g} from torch's values")


def _torch_values(graph: Graph, request: LoadRequest, rows: Tokens) -> Float32s:
    """[n, width] of torch in fp32, each row alone."""
    reducer = Reducer(request.reduction, "cpu")
    values = []
    with torch.inference_mode():
        for i in range(rows.num_rows):
            batch = Batch(rows.take(np.array([i])))
            ids, _, types = batch.padded(graph.pad_id)
            inputs = {"input_ids": ids} | ({} if types is None else {"token_type_ids": types})
            output = graph.model(**{name: torch.from_numpy(array) for name, array in inputs.items()})
            values.append(reducer(output, torch.from_numpy(batch.tokens.lengths)).numpy())
    return np.concatenate(values)


def _traced(graph: Graph, trial: Tokens) -> Any:
    """An openvino.Model of any batch size and length."""
    names = ("input_ids", "attention_mask", *(["token_type_ids"] if graph.takes_type_ids else []))
    example = model_inputs(Batch(trial), names, graph.pad_id)  # of different lengths, so that the mask matters
    with quiet(), silenced(), warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore")  # tracers warn of every Python number; the proof tells what matters
        model = import_openvino().convert_model(
            graph, example_input={name: torch.from_numpy(array) for name, array in example.items()}
        )
    model.outputs[0].get_tensor().set_names({"values"})
    return model


def _failures() -> tuple[type[Exception], ...]:
    frontend = import_module("openvino.frontend")
    own = (RuntimeError, ValueError, TypeError, AttributeError, IndexError, KeyError, NotImplementedError)
    foreign = (frontend.OpConversionFailure, frontend.OpValidationFailure, frontend.GeneralFailure)
    return (*own, *foreign, BatchRefusedError, ModelError)
