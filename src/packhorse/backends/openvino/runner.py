"""A compiled graph: batches started without waiting, their values fetched later."""

from __future__ import annotations

import dataclasses
from collections import deque
from typing import Any

import numpy as np

from packhorse.backends.openvino.files import Found, input_names, output_indices
from packhorse.backends.openvino.packages import import_openvino
from packhorse.backends.torch.graph_module import reduce_on_host
from packhorse.backends.torch.graph_values import output_names, place_inputs, values_of
from packhorse.backends.torch.reduce import Reducer
from packhorse.data import Batch, Float32s, Int64s, Reduction, Tokens
from packhorse.errors import BatchRefusedError, DeviceOutOfMemoryError, ModelError
from packhorse.sequences import attended, comparable

# A graph of dynamic shapes keeps what it prepared for each shape; OpenVINO's own limit of 5,000 entries, a dozen or
# so a shape, was 250 MB after 400 shapes of a MiniLM and still growing.
SHAPE_CACHE_ENTRIES = 500
MEMORY_WORDS = ("bad_alloc", "out of memory", "not enough memory", "allocate")
REFUSAL_WORDS = ("shape", "dimension", "broadcast", "rank", "out of range", "out of bound", "index")


@dataclasses.dataclass(frozen=True, slots=True)
class Streams:
    """Forwards at the same time, and the threads of all of them together."""

    count: int
    threads: int


class Runner:
    def __init__(self, found: Found, reduction: Reduction, precision: str, streams: Streams) -> None:
        """Raises ModelError where the graph cannot be compiled."""
        openvino = import_openvino()
        self.streams = streams
        self.record = found.record
        self._names = input_names(found.model)
        self._reduction = reduction
        self._outputs = output_indices(found.model, found.record, reduction.kind, output_names(reduction))
        self._reducer = Reducer(reduction, "cpu") if found.record.reduction is None else None
        try:
            self.compiled = openvino.Core().compile_model(found.model, "CPU", compile_config(precision, streams))
        except RuntimeError as error:
            raise ModelError(f"OpenVINO cannot compile the model: {error}") from error
        self._free: deque[Any] = deque()
        self._busy: dict[int, tuple[Any, ...]] = {}  # requests and the inputs that they read, till they are waited for

    def forward(self, batch: Batch) -> PendingValues:
        """Returns at once. Raises BatchRefusedError where the graph has no use for the batch's token types."""
        inputs = model_inputs(batch, self._names, self.record.pad_id, self._reduction)
        try:
            request = self._free.pop()
        except IndexError:
            request = self.compiled.create_infer_request()
        self._busy[id(request)] = (request, inputs)
        try:
            request.start_async(inputs, share_inputs=True)
        except RuntimeError as error:
            raise self._failure(request, batch, error) from error
        return PendingValues(self, request, batch)

    def wait(self, request: Any, batch: Batch) -> Float32s:
        """[N, width], the runner's no longer. Raises DeviceOutOfMemoryError or BatchRefusedError."""
        try:
            request.wait()
            outputs = {name: np.array(request.get_output_tensor(i).data) for name, i in self._outputs.items()}
        except (RuntimeError, MemoryError) as error:
            raise self._failure(request, batch, error) from error
        self._recycle(request)
        if self._reducer is None:
            return values_of(self._reduction, list(outputs.values()), batch)
        return reduce_on_host(self._reducer, outputs, batch)

    def comparable(self, batch: Batch) -> Float32s:
        """Values that can be held against those of another way."""
        return comparable(self._reduction, self.forward(batch).numpy())

    def alone(self, tokens: Tokens) -> list[Float32s]:
        """Of each row in a batch of its own, what can be compared."""
        return [self.comparable(Batch(tokens.take(np.array([i])))) for i in range(tokens.num_rows)]

    def close(self) -> None:
        """Waits for what is still running: it reads arrays of ours."""
        for request, _ in list(self._busy.values()):
            try:
                request.wait()
            except RuntimeError:  # nobody asked for that result
                continue
        self._busy.clear()
        self._free.clear()
        del self.compiled

    def _recycle(self, request: Any) -> None:
        self._busy.pop(id(request), None)
        self._free.append(request)

    def _failure(self, request: Any, batch: Batch, error: Exception) -> Exception:
        """What the engine's error means. The request is not used again."""
        self._busy.pop(id(request), None)
        text = str(error)
        if isinstance(error, MemoryError) or any(word in text for word in MEMORY_WORDS):
            return DeviceOutOfMemoryError(f"{batch.num_rows} rows x {batch.max_seqlen} tokens: {_last_line(text)}")
        if any(word in text.lower() for word in REFUSAL_WORDS):
            return BatchRefusedError(_last_line(text))
        return RuntimeError(f"OpenVINO: {text}")


class PendingValues:
    """Values that may still be computed."""

    def __init__(self, runner: Runner, request: Any, batch: Batch) -> None:
        self._runner, self._request, self._batch = runner, request, batch
        self._values: Float32s | None = None

    def numpy(self) -> Float32s:
        if self._values is None:
            self._values = self._runner.wait(self._request, self._batch)
            self._request = None
        return self._values


def compile_config(precision: str, streams: Streams) -> dict[str, Any]:
    """fp32 has to be asked for: on a processor with bf16 instructions OpenVINO computes in bf16 unless told not to.

    What int8 leaves unquantized is computed in fp32 too: with bf16 there BERT-base was no faster (6,980 tokens/s to
    6,820 at 512 tokens a batch, 4,560 to 4,620 at 2,048).
    """
    return {
        "INFERENCE_PRECISION_HINT": "bf16" if precision == "bf16" else "f32",
        "EXECUTION_MODE_HINT": "ACCURACY" if precision == "fp32" else "PERFORMANCE",
        "NUM_STREAMS": streams.count,
        "INFERENCE_NUM_THREADS": streams.threads,
        # Pinned threads wait for their own core though another is free: one stream beside other work on the machine
        # ran at 760 tokens/s pinned and 1,060 free; alone, or in a stream a thread, there was no difference.
        "ENABLE_CPU_PINNING": False,
        "CPU_RUNTIME_CACHE_CAPACITY": SHAPE_CACHE_ENTRIES,
    }


def model_inputs(batch: Batch, names: tuple[str, ...], pad_id: int, reduction: Reduction) -> dict[str, Int64s]:
    """[B, S] each, padded on the right, and what the reduction is told beside them, for the inputs that the graph has.
    Raises BatchRefusedError."""
    ids, mask, type_ids = batch.padded(pad_id)
    if type_ids is not None and "token_type_ids" not in names and type_ids.any():
        raise BatchRefusedError("the rows have token types, and the converted model takes none")
    inputs = {
        "input_ids": ids,
        "attention_mask": attended(reduction, ids, mask).astype(np.int64),
        "token_type_ids": np.zeros_like(ids) if type_ids is None else type_ids,
    }
    if not inputs.keys() >= set(names):
        inputs |= place_inputs(reduction, batch)
    return {name: inputs[name] for name in names}


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else text
