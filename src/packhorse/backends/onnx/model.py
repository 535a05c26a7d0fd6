"""A graph in onnxruntime: padded batches in, reduced values out."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np

from packhorse.backends.onnx.baked import OUTPUT, check_reduction
from packhorse.backends.onnx.build import Built
from packhorse.backends.onnx.feeds import feeds, input_types
from packhorse.backends.onnx.providers import Provider, open_session
from packhorse.data import Batch, Float32s, Int64s, ModelCost, Reduction, Tokens
from packhorse.errors import BatchRefusedError, DeviceOutOfMemoryError, ModelError
from packhorse.load_request import LoadRequest

# Largest difference between a row alone and in a padded batch, as a share of the largest value. Activations of an int8
# graph have one scale a batch, so their values depend on its other rows a little.
PARITY = {"fp32": 1e-3, "bf16": 0.1, "fp16": 0.02, "int8": 0.1}
MEMORY_WORDS = ("failed to allocate memory", "out of memory", "bad_alloc", "alloc_failed", "cannot allocate memory")
# What graphs that others exported give, the most useful first.
TOKEN_OUTPUTS = ("last_hidden_state", "token_embeddings")
IO_DEVICES = {"CUDAExecutionProvider": "cuda", "TensorrtExecutionProvider": "cuda", "ROCMExecutionProvider": "cuda"}

Reduce = Callable[[np.ndarray, Int64s], Float32s]


class OnnxModel:
    is_packed = False
    in_flight = 1  # a run returns when its values are there

    def __init__(self, request: LoadRequest, built: Built, provider: Provider) -> None:
        """Raises ModelError where the graph does not load, fit the task or compute the trial's rows."""
        self.device, self._path = request.device, built.path
        baked = built.facts.baked
        if baked is not None:
            check_reduction(baked, request.reduction, built.path)
        self._output, self._reduce, note = output_of(built, request)
        self.notes = (*(baked.notes if baked else ()), *built.notes, *([note] if note else []))
        self.attention = baked.attention if baked else "fused"
        self.max_length = baked.max_length if baked else None
        self.cost = baked.cost if baked else _cost(request, built)
        self.weight_bytes = built.facts.weight_bytes
        self._pad_id = baked.pad_id if baked else _pad_id(request)
        self._session = open_session(built.path, provider, request.device, request.precision, request.threads)
        self._types = input_types(self._session, built.path)
        self._io_device = IO_DEVICES.get(provider.execution_provider)
        self._try_out(request)

    def _try_out(self, request: LoadRequest) -> None:
        try:
            alone = self._alone(request.trial)
            self.pads_safely = self._pads_safely(request.trial, alone, request.precision)
        except Exception as error:
            raise ModelError(
                f"{self._path}: a trial forward of a few short rows failed: {str(error).splitlines()[0]}"
            ) from error
        width = alone.shape[1]
        if request.reduction.width not in (0, width):
            raise ModelError(f"{self._path}: gives {width} values a row, {request.reduction.width} are expected")
        self.reduction: Reduction = dataclasses.replace(request.reduction, width=width)

    def _alone(self, rows: Tokens) -> Float32s:
        return np.concatenate([self.forward(Batch(rows.take(np.array([i])))).numpy() for i in range(rows.num_rows)])

    def _pads_safely(self, trial: Tokens, alone: Float32s, precision: str) -> bool:
        """Whether rows of different lengths in one padded batch have the outputs that they have alone."""
        try:
            together = self.forward(Batch(trial)).numpy()
        except BatchRefusedError:
            return False
        scale = max(float(np.abs(alone).max()), 1e-6)
        return bool(np.abs(together - alone).max() <= PARITY[precision] * scale)

    def computed_tokens(self, lengths: Int64s) -> int:
        return int(lengths.max(initial=0)) * len(lengths)

    def forward(self, batch: Batch) -> OnnxOutput:
        """Raises DeviceOutOfMemoryError where the batch does not fit, BatchRefusedError where the graph refuses ids."""
        inputs = feeds(batch, self._types, self._pad_id)
        try:
            values = self._run(inputs)
        except Exception as error:
            raise _translated(error, batch) from error
        return OnnxOutput(self._reduce(values, batch.tokens.lengths))

    def _run(self, inputs: dict[str, np.ndarray]) -> np.ndarray:
        if self._io_device is None:
            values: np.ndarray = self._session.run([self._output], inputs)[0]
            return values
        return run_bound(self._session, inputs, self._output, self._io_device, self.device)

    def peak_bytes(self) -> int | None:
        return None

    def close(self) -> None:
        del self._session


@dataclasses.dataclass(frozen=True, slots=True)
class OnnxOutput:
    values: Float32s

    def numpy(self) -> Float32s:
        return self.values


def run_bound(session: Any, inputs: dict[str, np.ndarray], output: str, kind: str, device: str) -> np.ndarray:
    """One run whose output is made on the device and copied once, instead of where the graph's last node likes."""
    binding = session.io_binding()
    for name, array in inputs.items():
        binding.bind_cpu_input(name, array)
    binding.bind_output(output, kind, int(device.partition(":")[2] or 0))
    session.run_with_iobinding(binding)
    values: np.ndarray = binding.copy_outputs_to_cpu()[0]
    return values


def output_of(built: Built, request: LoadRequest) -> tuple[str, Reduce, str]:
    """The output to read, what is left to do with it, and a note. Raises ModelError where none fits the task."""
    outputs, reduction = built.facts.outputs, request.reduction
    if built.facts.baked is not None and OUTPUT in outputs:
        return OUTPUT, lambda values, _lengths: values.astype(np.float32, copy=False), ""
    if reduction.kind == "classify" and "logits" in outputs:
        return "logits", _reducer(reduction, "logits"), ""
    tokens = next((name for name in TOKEN_OUTPUTS if name in outputs), None)
    if reduction.kind == "pool" and tokens:
        return tokens, _reducer(reduction, "last_hidden_state"), ""
    if reduction.kind == "pool" and "sentence_embedding" in outputs:
        note = "the graph pools by itself: its sentence_embedding is taken as it is"
        return "sentence_embedding", lambda values, _lengths: values.astype(np.float32, copy=False), note
    wanted = "logits" if reduction.kind == "classify" else f"{', '.join(TOKEN_OUTPUTS)} or sentence_embedding"
    raise ModelError(f"{built.path}: its outputs are {', '.join(outputs)}; {request.description.task} needs {wanted}")


def _reducer(reduction: Reduction, field: str) -> Reduce:
    """The reduction by torch, on the host. field: the one of a transformers output that it reads."""
    import torch

    from packhorse.backends.torch.reduce import Reducer

    reducer = Reducer(reduction, "cpu")

    def reduce(values: np.ndarray, lengths: Int64s) -> Float32s:
        with torch.inference_mode():
            reduced: Float32s = reducer(
                SimpleNamespace(**{field: torch.from_numpy(values)}), torch.from_numpy(lengths)
            ).numpy()
        return reduced

    return reduce


def _cost(request: LoadRequest, built: Built) -> ModelCost:
    """Of a graph that others exported: its own linear layers, the attention of the model that its config describes."""
    from packhorse.backends.torch.meta import attention_cost

    return ModelCost(built.facts.per_token, built.facts.per_row, attention_cost(request.description))


def _pad_id(request: LoadRequest) -> int:
    """The config's; 0 where it names none. Masked positions count for nothing, and the trial proves it."""
    try:
        config = json.loads((request.description.folder / "config.json").read_text(encoding="utf-8"))
        return int(config.get("pad_token_id") or 0)
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise ModelError(f"{request.description.folder / 'config.json'}: cannot be read: {error}") from error


def _translated(error: Exception, batch: Batch) -> Exception:
    """onnxruntime's error as one of ours where the run goes on after it."""
    text = str(error)
    if any(word in text.lower() for word in MEMORY_WORDS) or isinstance(error, MemoryError):
        return DeviceOutOfMemoryError(
            f"{batch.num_rows} rows x {batch.max_seqlen} tokens: {text.splitlines()[0][:300]}"
        )
    if type(error).__name__ == "InvalidArgument":
        return BatchRefusedError(text.splitlines()[0][:300])
    return error
