"""A graph in onnxruntime on batches: which outputs are read, and what is left to do with them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from packhorse.backends.onnx.build import Built
from packhorse.backends.onnx.feeds import feeds, input_types
from packhorse.backends.onnx.providers import Provider, open_session
from packhorse.backends.torch.graph_values import HIDDEN, MODEL_OUTPUTS, VALUES, input_names, output_names, values_of
from packhorse.data import Batch, Float32s, Reduction
from packhorse.errors import ModelError
from packhorse.load_request import LoadRequest

IO_DEVICES = {"CUDAExecutionProvider": "cuda", "TensorrtExecutionProvider": "cuda", "ROCMExecutionProvider": "cuda"}


class Reading(NamedTuple):
    outputs: tuple[str, ...]
    reduce: Callable[[Sequence[np.ndarray], Batch], Float32s]  # to [N, width]
    places: tuple[str, ...] = ()  # inputs of a graph of ours beside those of a text encoder
    note: str = ""


class Session:
    def __init__(self, path: Path, reading: Reading, pad_id: int, request: LoadRequest, provider: Provider) -> None:
        """Raises ModelError where onnxruntime does not load the file, or it has inputs that are not known."""
        self._session = open_session(path, provider, request.device, request.precision, request.threads)
        self._types = input_types(self._session, path, reading.places)
        self._reading, self._reduction, self._pad_id = reading, request.reduction, pad_id
        self._io_device, self._device = IO_DEVICES.get(provider.execution_provider), request.device

    def __call__(self, batch: Batch) -> Float32s:
        """[N, width]. Raises what onnxruntime raises."""
        inputs = feeds(batch, self._types, self._pad_id, self._reduction)
        return self._reading.reduce(self._run(inputs), batch)

    def _run(self, inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
        names = self._reading.outputs
        if self._io_device is not None:
            return run_bound(self._session, inputs, names, self._io_device, self._device)
        outputs: list[np.ndarray] = self._session.run(list(names), inputs)
        return outputs


def run_bound(
    session: Any, inputs: dict[str, np.ndarray], outputs: Sequence[str], kind: str, device: str
) -> list[np.ndarray]:
    """One run whose outputs are made on the device and copied once, instead of where the graph's last node likes."""
    binding = session.io_binding()
    for name, array in inputs.items():
        binding.bind_cpu_input(name, array)
    for name in outputs:
        binding.bind_output(name, kind, int(device.partition(":")[2] or 0))
    session.run_with_iobinding(binding)
    values: list[np.ndarray] = binding.copy_outputs_to_cpu()
    return values


def own_reading(reduction: Reduction) -> Reading:
    """Of a graph with the reduction inside."""
    return Reading(
        output_names(reduction), lambda outputs, batch: values_of(reduction, outputs, batch), input_names(reduction)
    )


def reading_of(built: Built, request: LoadRequest) -> Reading:
    """Raises ModelError where no output fits the task."""
    seen, reduction = built.facts.outputs, request.reduction
    if built.facts.baked is not None and VALUES in seen:
        return own_reading(reduction)
    choices = MODEL_OUTPUTS.get(reduction.kind, ())
    found = next((names for names in choices if set(names) <= set(seen)), None)
    if found:
        return Reading(found, _reducer(reduction, HIDDEN[0] if found in HIDDEN else found))
    if reduction.kind == "pool" and "sentence_embedding" in seen:
        note = "the graph pools by itself: its sentence_embedding is taken as it is"
        return Reading(("sentence_embedding",), lambda outputs, _: outputs[0].astype(np.float32, copy=False), (), note)
    wanted = ", ".join(" and ".join(names) for names in choices)
    wanted += " or sentence_embedding" if reduction.kind == "pool" else ""
    raise ModelError(f"{built.path}: its outputs are {', '.join(seen)}; {request.description.task} needs {wanted}")


def _reducer(reduction: Reduction, fields: tuple[str, ...]) -> Callable[[Sequence[np.ndarray], Batch], Float32s]:
    """The reduction by torch, on the host. fields: those of a transformers output that it reads."""
    from packhorse.backends.torch.graph_module import reduce_on_host
    from packhorse.backends.torch.reduce import Reducer

    reducer = Reducer(reduction, "cpu")
    return lambda outputs, batch: reduce_on_host(reducer, dict(zip(fields, outputs, strict=True)), batch)
