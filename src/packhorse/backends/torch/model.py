"""A transformers model on one device: batches in, reduced values out."""

from __future__ import annotations

import dataclasses
from concurrent.futures import Future

import numpy as np
import torch

from packhorse.backends.torch.attention import check_attention
from packhorse.backends.torch.cost import measure_cost
from packhorse.backends.torch.head_proof import check_head
from packhorse.backends.torch.int8 import quantize
from packhorse.backends.torch.layouts import Compiled, Layout, Packed, Padded
from packhorse.backends.torch.loading import Loaded, load_on_devices
from packhorse.backends.torch.placement import execution_devices
from packhorse.backends.torch.quiet import quiet
from packhorse.backends.torch.reduce import Reducer
from packhorse.backends.torch.weights import max_positions
from packhorse.backends.torch.workers import Workers
from packhorse.data import Batch, Float32s, Int64s, Tokens
from packhorse.devices.gemm import DTYPES
from packhorse.errors import BatchRefusedError, ModelError
from packhorse.generation import QUANTIZED
from packhorse.load_request import LoadRequest
from packhorse.packing import attention as packed_attention
from packhorse.packing.heads import READS, Reads
from packhorse.packing.linear import is_available
from packhorse.packing.prepack import prepack
from packhorse.packing.probe import TOLERANCE, error, probe_rows
from packhorse.sequences import comparable
from packhorse.stages import Output

# Largest difference between a row alone and in a padded batch, as a share of the largest value.
PARITY = {"fp32": 1e-3, "bf16": 0.1, "fp16": 0.02}
CALIBRATION_ROWS, CALIBRATION_TOKENS = 4, 8_192  # rows a forward, tokens in all
TRIAL_ERRORS = (RuntimeError, ValueError, TypeError, IndexError, AttributeError, KeyError, BatchRefusedError)


class TorchModel:
    def __init__(self, request: LoadRequest, loaded: Loaded | None = None) -> None:
        """loaded: called when the weights are there, before any forward. Raises ModelError, or UsageError where what
        was asked for is not available here."""
        self.device = request.device
        self.notes: tuple[str, ...] = ()
        self.is_packed = False
        check_attention(request.attention, request.device)
        if request.attention == "flex_attention" and request.device == "cpu":
            self.notes += ("flex_attention is compiled for every new shape: on a CPU that takes minutes",)
        self._weights = load_on_devices(request, generates=False, loaded=loaded)
        self._model, self._base, self.device = self._weights.model, self._weights.base, self._weights.device
        self.notes += self._weights.notes
        self.device_map = self._weights.device_map
        self.max_length = max_positions(self._model)
        self.reduction = dataclasses.replace(request.reduction)
        self._reducer = Reducer(request.reduction, self.device)
        self._workers = _workers(request, self.device)
        self.in_flight = max(3, request.workers + 1)
        self.attention = request.attention if ":" in request.attention else self._model.config._attn_implementation
        self._padded = Padded(self._model, self._reducer, self.device, self.attention)
        self._layout: Layout = self._padded
        try:
            with quiet():
                self._try_out(request)
        except TRIAL_ERRORS as failure:
            raise ModelError(
                f"{request.description.folder}: a trial forward of a few short rows failed: {failure}"
            ) from failure

    def computed_tokens(self, lengths: Int64s) -> int:
        return self._layout.computed_tokens(lengths)

    def forward(self, batch: Batch) -> Output:
        return self._workers.submit(self._layout, batch)

    def on_device(self, batch: Batch) -> torch.Tensor | Future[torch.Tensor]:
        """As forward(), but the values stay on the device; nothing waits for it."""
        return self._workers.on_device(self._layout, batch)

    def peak_bytes(self) -> int | None:
        return torch.cuda.max_memory_allocated(self.device) if self.device.startswith("cuda") else None

    def close(self) -> None:
        self._workers.close()
        self._weights.close()
        del self._model, self._layout, self._padded, self._weights

    # -- what this model can do

    def _try_out(self, request: LoadRequest) -> None:
        """Finds the fastest layout that gives each row the output that it has alone."""
        first_two = Batch(request.trial.take(np.array([0, 1])))
        ids = self._padded.inputs(first_two)["input_ids"]
        self.cost = measure_cost(self._model, request.description, ids, self.reduction)
        if self.reduction.reads_vocabulary:
            self.notes += check_head(self._padded, self._model, self.reduction, request, self._base)
        self.pads_safely = self._pads_safely(request)
        longest = _least(request.description.max_length, self.max_length, request.longest)
        rows = probe_rows(request.trial, request.rows, longest, self._model.config.pad_token_id)
        alone = self._alone(rows)
        if request.compiled:
            self._compile(request, rows, alone)
        elif request.attention in ("auto", "packed", *packed_attention.FLASH_PACKAGES):
            self._pack(request, rows, alone)
        if request.attention == "packed" and not self.is_packed:
            raise ModelError(f"{request.description.folder}: --attention packed: {self.notes[-1]}; leave it out")
        if request.device == "cpu" and not request.compiled and self._weights.is_plain:
            self._speed_up_layers(request, first_two, rows, alone)
        self.weight_bytes = self._weights.num_bytes

    def _compile(self, request: LoadRequest, rows: Tokens, alone: Float32s) -> None:
        """By torch.compile, for all shapes before the first is timed. Raises ModelError where the values change."""
        folder = request.description.folder
        if not self.pads_safely or request.precision in QUANTIZED:
            why = f"{request.precision} runs in kernels of its own" if self.pads_safely else "outputs change with it"
            raise ModelError(f"{folder}: --compile runs padded batches, and {why}; leave it out")
        self._layout = Compiled(self._model, self._reducer, self.device, self.attention)
        together = self._values(
            self.forward(Batch(rows))
        )  # several rows first: sizes of one are compiled by themselves
        few = np.arange(min(3, rows.num_rows))
        for some in (few, few[:1], np.array([int(rows.lengths.argmax())])):
            self.forward(Batch(rows.take(some))).numpy()
        difference = error(alone, together)
        if difference > TOLERANCE[self._base]:
            raise ModelError(f"{folder}: compiled, rows differ from each row alone by {difference:.2g} of their spread")

    def _pack(self, request: LoadRequest, rows: Tokens, alone: Float32s) -> None:
        """Packed, if that is right for this model; else a note why not."""
        if len(execution_devices(self._model)) > 1:
            self.notes += ("padded: the boundaries of packed rows lie on one device, and the layers on several",)
            return
        if self.reduction.unattended_id >= 0:
            self.notes += ("padded: a query's mask tokens look at the others, and none at them",)
            return
        packed_attention.register()
        before = self._model.config._attn_implementation
        kernel = request.attention if request.attention in packed_attention.FLASH_PACKAGES else "auto"
        try:
            packed_attention.select(self._model, packed_attention.NAME)
            found = self._find_packed(rows, alone, kernel)
        except (packed_attention.PackingError, *TRIAL_ERRORS) as failure:
            found = f"it cannot be packed: {failure}"
        if isinstance(found, str):
            packed_attention.select(self._model, before)
            self.notes += (f"padded: {found}",)
            return
        self._layout, self.is_packed = found, True
        self.attention = "packed" if kernel == "auto" else kernel

    def _find_packed(self, rows: Tokens, alone: Float32s, kernel: str) -> Packed | str:
        """The packed layout whose values are those of each row alone, or why there is none."""
        candidates: tuple[Reads, ...] = READS if self.reduction.kind == "classify" else ("all",)
        errors = []
        for reads in candidates:
            layout = Packed(self._model, self._reducer, self.device, reads, kernel)
            errors.append(error(alone, self._values(self._workers.submit(layout, Batch(rows)))))
            if errors[-1] <= TOLERANCE[self._base]:
                return layout
        return f"packed, rows differ from each row alone by {min(errors):.2g} of their spread"

    def _speed_up_layers(self, request: LoadRequest, first_two: Batch, rows: Tokens, alone: Float32s) -> None:
        """On a CPU: the linear layers in oneDNN's order, or in int8, if the values stay what they are."""
        body = self._model.base_model

        def short() -> None:
            self._layout(first_two)

        if request.precision == "int8":
            undo = quantize(body, short, lambda: self._calibrate(request), DTYPES[self._base])
        elif is_available(DTYPES[self._base]):
            undo = prepack(body, short)
        else:
            return
        difference = self._difference(rows, alone, request.trial.num_rows)
        if difference > TOLERANCE[request.precision]:
            undo()
            if request.precision == "int8":
                raise ModelError(
                    f"{request.description.folder}: int8 differs from {self._base} by {difference:.2g} of the spread"
                )
            self.notes += (f"torch's own linear layers: oneDNN's differ by {difference:.2g} of the rows' spread",)

    def _calibrate(self, request: LoadRequest) -> None:
        """Runs rows of the job in this thread, for whoever watches the layers."""
        rows = request.rows if request.rows.num_rows else request.trial
        every = max(int(rows.offsets[-1]) // CALIBRATION_TOKENS, 1)
        for first in range(0, rows.num_rows, every * CALIBRATION_ROWS):
            chosen = np.arange(first, min(first + every * CALIBRATION_ROWS, rows.num_rows), every)
            self._layout(Batch(rows.take(chosen)))

    def _difference(self, rows: Tokens, alone: Float32s, num_trial: int) -> float:
        if self.is_packed:
            return error(alone, self._values(self.forward(Batch(rows))))
        again = self._alone(rows.take(np.arange(num_trial)))
        return error(alone[: len(again)], again)

    def _pads_safely(self, request: LoadRequest) -> bool:
        """Whether rows of different lengths in one padded batch have the outputs that they have alone.

        A model that reads its last position (XLNet), or has no padding token (GPT-2), gives others, without any error;
        a pinned SDPA kernel may take no mask.
        """
        alone = self._alone(request.trial)
        try:
            together = self._values(self.forward(Batch(request.trial)))
        except BatchRefusedError:
            return False
        except RuntimeError:
            if ":" not in self.attention:
                raise
            return False
        scale = max(float(np.abs(alone).max()), 1e-6)
        return bool(np.abs(together - alone).max() <= PARITY[self._base] * scale)

    def _alone(self, rows: Tokens) -> Float32s:
        """[N, width] each row by itself, as transformers computes it: by the model's own forward."""
        run = self._padded.plain if self.reduction.reads_vocabulary else self._layout
        outputs = [self._workers.submit(run, Batch(rows.take(np.array([i])))) for i in range(rows.num_rows)]
        return np.concatenate([self._values(output) for output in outputs])

    def _values(self, output: Output) -> Float32s:
        """That can be held against those of another way."""
        return comparable(self.reduction, output.numpy())


def _workers(request: LoadRequest, device: str) -> Workers:
    """One where torch.compile is used: it refuses a call while another thread traces. One where layers lie on several
    devices: the weights of a layer leave it after each forward."""
    if request.attention == "flex_attention" or request.compiled or request.placement.is_split:
        return Workers(device, 1, request.workers * request.threads)
    return Workers(device, request.workers, request.threads)


def _least(*limits: int | None) -> int | None:
    return min((n for n in limits if n), default=None)
