"""A LoadRequest to a loaded model: cached, converted or the folder's own graph; quantized; compiled; tried."""

from __future__ import annotations

import dataclasses

import numpy as np

from packhorse.backends.openvino.cache import cache_key, find_cached, keep
from packhorse.backends.openvino.files import Found, find_in_folder, has_weights
from packhorse.backends.openvino.graph_cost import weight_bytes
from packhorse.backends.openvino.packages import import_openvino
from packhorse.backends.openvino.runner import PendingValues, Runner, Streams
from packhorse.backends.openvino.streams import choose_streams
from packhorse.data import Batch, Int64s, Tokens
from packhorse.errors import BatchRefusedError, DeviceOutOfMemoryError, ModelError, UsageError
from packhorse.load_request import LoadRequest

# Largest difference between a row alone and in a padded batch, as a share of the largest value.
PARITY = {"fp32": 1e-3, "bf16": 0.1, "int8": 0.1}


def load_model(request: LoadRequest) -> OpenVINOModel:
    """Raises ModelError, or UsageError where a setting means nothing here."""
    import_openvino()
    if request.attention != "auto":
        raise UsageError(f"--attention {request.attention}: OpenVINO computes attention its own way; leave it out")
    return OpenVINOModel(find_graph(request), request)


def find_graph(request: LoadRequest) -> Found:
    """The graph at the request's precision, from the cache where it is there."""
    if request.precision != "int8":
        return _float_graph(request)
    key = cache_key(request, "int8")
    cached = find_cached(key)
    if cached is not None:
        return cached
    found = _float_graph(request)
    if found.record.weights == "int8":  # exported so
        return found
    from packhorse.backends.openvino.quantize import quantize

    return keep(key, quantize(found, request))


def _float_graph(request: LoadRequest) -> Found:
    if not has_weights(request.description):
        return find_in_folder(request)
    key = cache_key(request, "float")
    cached = find_cached(key)
    if cached is not None:
        return cached
    from packhorse.backends.openvino.convert import convert

    return keep(key, convert(request))


class OpenVINOModel:
    device = "cpu"
    attention = "fused"
    is_packed = False

    def __init__(self, found: Found, request: LoadRequest) -> None:
        self.reduction = dataclasses.replace(request.reduction)
        self.cost, self.max_length = found.record.cost, found.record.max_length
        self.weight_bytes = weight_bytes(found.model)
        self._precision = request.precision
        self._runner, notes = choose_streams(lambda streams: self._compiled(found, streams), request)
        self.notes = (*found.record.notes, *notes)
        self.in_flight = 2 * self._runner.streams.count  # so that a stream that is done finds its next batch waiting
        try:
            self.pads_safely = self._pads_safely(request.trial)
        except (RuntimeError, BatchRefusedError, DeviceOutOfMemoryError) as error:
            raise ModelError(f"{request.description.folder}: a trial forward of short rows failed: {error}") from error

    def _compiled(self, found: Found, streams: Streams) -> Runner:
        return Runner(found, self.reduction, self._precision, streams)

    def _pads_safely(self, trial: Tokens) -> bool:
        """Whether rows of different lengths in one padded batch have the outputs that they have alone."""
        first = self.forward(Batch(trial.take(np.array([0])))).numpy().shape[1]
        width = self.reduction.width
        if width and first != width:
            raise ModelError(f"the model gives {first} values a {self.reduction.per}; its config says {width}")
        self.reduction = dataclasses.replace(self.reduction, width=first)
        alone = np.concatenate(self._runner.alone(trial))
        try:
            together = self._runner.comparable(Batch(trial))
        except BatchRefusedError:
            return False
        scale = max(float(np.abs(alone).max(initial=0.0)), 1e-6)
        is_equal = together.shape == alone.shape
        return bool(is_equal and np.abs(together - alone).max(initial=0.0) <= PARITY[self._precision] * scale)

    def computed_tokens(self, lengths: Int64s) -> int:
        return int(lengths.max(initial=0)) * len(lengths)

    def forward(self, batch: Batch) -> PendingValues:
        """Returns at once; numpy() of what it returns waits, and raises DeviceOutOfMemoryError or BatchRefusedError."""
        return self._runner.forward(batch)

    def peak_bytes(self) -> int | None:
        return None

    def close(self) -> None:
        self._runner.close()
