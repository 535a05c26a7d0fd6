"""A graph in onnxruntime: padded batches in, reduced values out."""

from __future__ import annotations

import dataclasses
import json

import numpy as np

from packhorse.backends.onnx.baked import check_reduction
from packhorse.backends.onnx.build import Built
from packhorse.backends.onnx.providers import Provider
from packhorse.backends.onnx.session import Session, reading_of
from packhorse.data import Batch, Float32s, Int64s, Reduction, Tokens
from packhorse.errors import BatchRefusedError, DeviceOutOfMemoryError, ModelError
from packhorse.load_request import LoadRequest
from packhorse.model_cost import ModelCost
from packhorse.sequences import comparable

# Largest difference between a row alone and in a padded batch, as a share of the largest value. Activations of an int8
# graph have one scale a batch, so their values depend on its other rows a little.
PARITY = {"fp32": 1e-3, "bf16": 0.1, "fp16": 0.02, "int8": 0.1}
MEMORY_WORDS = ("failed to allocate memory", "out of memory", "bad_alloc", "alloc_failed", "cannot allocate memory")


class OnnxModel:
    is_packed = False
    in_flight = 1  # a run returns when its values are there

    def __init__(self, request: LoadRequest, built: Built, provider: Provider) -> None:
        """Raises ModelError where the graph does not load, fit the task or compute the trial's rows."""
        self.device, self._path = request.device, built.path
        baked = built.facts.baked
        if baked is not None:
            check_reduction(baked, request.reduction, built.path)
        reading = reading_of(built, request)
        self.notes = (*(baked.notes if baked else ()), *built.notes, *([reading.note] if reading.note else []))
        self.attention = baked.attention if baked else "fused"
        self.max_length = baked.max_length if baked else None
        self.cost = baked.cost if baked else _cost(request, built)
        self.weight_bytes = built.facts.weight_bytes
        self.reduction: Reduction = request.reduction
        pad_id = baked.pad_id if baked else _pad_id(request)
        self._session = Session(built.path, reading, pad_id, request, provider)
        self._try_out(request)

    def _try_out(self, request: LoadRequest) -> None:
        try:
            alone = self._alone(request.trial)
            self.pads_safely = self._pads_safely(request.trial, alone, request.precision)
        except Exception as error:
            raise ModelError(
                f"{self._path}: a trial forward of a few short rows failed: {str(error).splitlines()[0]}"
            ) from error
        width = alone[0].shape[1]
        if request.reduction.width not in (0, width):
            raise ModelError(
                f"{self._path}: gives {width} values a {self.reduction.per}, {request.reduction.width} are expected"
            )
        self.reduction = dataclasses.replace(request.reduction, width=width)

    def _alone(self, rows: Tokens) -> list[Float32s]:
        return [self.forward(Batch(rows.take(np.array([i])))).numpy() for i in range(rows.num_rows)]

    def _pads_safely(self, trial: Tokens, alone: list[Float32s], precision: str) -> bool:
        """Whether rows of different lengths in one padded batch have the outputs that they have alone."""
        wanted = np.concatenate([comparable(self.reduction, values) for values in alone])
        try:
            together = comparable(self.reduction, self.forward(Batch(trial)).numpy())
        except BatchRefusedError:
            return False
        scale = max(float(np.abs(wanted).max(initial=0.0)), 1e-6)
        is_equal = (
            together.shape == wanted.shape and np.abs(together - wanted).max(initial=0.0) <= PARITY[precision] * scale
        )
        return bool(is_equal)

    def computed_tokens(self, lengths: Int64s) -> int:
        return int(lengths.max(initial=0)) * len(lengths)

    def forward(self, batch: Batch) -> OnnxOutput:
        """Raises DeviceOutOfMemoryError where the batch does not fit, BatchRefusedError where the graph refuses ids."""
        try:
            return OnnxOutput(self._session(batch))
        except Exception as error:
            raise _translated(error, batch) from error

    def peak_bytes(self) -> int | None:
        return None

    def close(self) -> None:
        del self._session


@dataclasses.dataclass(frozen=True, slots=True)
class OnnxOutput:
    values: Float32s

    def numpy(self) -> Float32s:
        return self.values


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
