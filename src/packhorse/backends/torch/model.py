"""A transformers model on one device: padded batches in, reduced values out."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import torch
from torch import nn

from packhorse.backends.torch.cost import measure_cost
from packhorse.backends.torch.quiet import quiet
from packhorse.backends.torch.reduce import Reducer
from packhorse.data import Batch, Float32s, Int64s, LoadRequest, ModelDescription, Reduction, Tokens
from packhorse.devices.gemm import DTYPES
from packhorse.errors import BatchRefusedError, DeviceOutOfMemoryError, ModelError

# Largest difference between a row alone and in a padded batch, as a share of the largest value.
PARITY = {"fp32": 1e-3, "bf16": 0.1, "fp16": 0.02}
# What a failed allocation says outside CUDA, where torch raises a plain RuntimeError.
MEMORY_WORDS = ("out of memory", "can't allocate memory", "not enough memory", "ALLOC_FAILED")


class TorchModel:
    attention = "sdpa"
    notes: tuple[str, ...] = ()
    in_flight = 3  # on a GPU, copies of results still on their way

    def __init__(self, request: LoadRequest) -> None:
        description, reduction, device, precision = (
            request.description, request.reduction, request.device, request.precision,
        )  # fmt: skip
        trial = request.trial
        self.device = device
        self._threads = request.threads
        if device.startswith("cuda"):
            torch.cuda.set_device(device)
        try:
            self._model = _load_weights(description, reduction, DTYPES[precision]).to(device)
        except torch.OutOfMemoryError as error:
            raise ModelError(
                f"{description.folder}: its weights in {precision} do not fit on {device}: {error}"
            ) from error
        self._pad_id = _pad_id(self._model.config)
        self.max_length = _positions(self._model)
        self._reducer = Reducer(reduction, device)
        self.reduction = dataclasses.replace(reduction)
        try:
            self._set_threads()
            first_two = Batch(trial.take(np.array([0, 1])))
            self.cost = measure_cost(self._model, description, self._inputs(first_two)[0]["input_ids"])
            self.pads_safely = self._pads_safely(trial, precision)
        except (RuntimeError, ValueError, TypeError, IndexError, AttributeError, BatchRefusedError) as error:
            raise ModelError(f"{description.folder}: a trial forward of a few short rows failed: {error}") from error

    def _pads_safely(self, trial: Tokens, precision: str) -> bool:
        """Whether rows of different lengths in one padded batch have the outputs that they have alone.

        A model that reads its last position (XLNet), or has no padding token (GPT-2), gives others, without any error.
        """
        try:
            together = self.forward(Batch(trial)).numpy()
        except BatchRefusedError:
            return False
        alone = np.concatenate([self.forward(Batch(trial.take(np.array([i])))).numpy() for i in range(trial.num_rows)])
        scale = max(float(np.abs(alone).max()), 1e-6)
        return bool(np.abs(together - alone).max() <= PARITY[precision] * scale)

    def _set_threads(self) -> None:
        """The number of threads is one for the whole process: another engine may have changed it."""
        if self.device == "cpu" and torch.get_num_threads() != self._threads:
            torch.set_num_threads(self._threads)

    def computed_tokens(self, lengths: Int64s) -> int:
        return int(lengths.max(initial=0)) * len(lengths)

    def forward(self, batch: Batch) -> TorchOutput:
        """Raises DeviceOutOfMemoryError where the batch does not fit, BatchRefusedError where the model refuses ids."""
        self._set_threads()
        try:
            with torch.inference_mode():
                inputs, lengths = self._inputs(batch)
                return TorchOutput(self._reducer(self._model(**inputs), lengths))
        except RuntimeError as error:
            if not isinstance(error, torch.OutOfMemoryError) and not any(w in str(error) for w in MEMORY_WORDS):
                raise
            if self.device.startswith("cuda"):
                torch.cuda.empty_cache()
            raise DeviceOutOfMemoryError(
                f"{batch.num_rows} rows x {batch.max_seqlen} tokens: {str(error).splitlines()[0]}"
            ) from error
        except ValueError as error:
            raise BatchRefusedError(str(error)) from error

    def peak_bytes(self) -> int | None:
        return torch.cuda.max_memory_allocated(self.device) if self.device.startswith("cuda") else None

    def close(self) -> None:
        del self._model

    def _inputs(self, batch: Batch) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        """input_ids, and attention_mask only where there is padding: SDPA without a mask is faster."""
        ids, mask, type_ids = batch.padded(self._pad_id)
        inputs = {"input_ids": self._to_device(ids)}
        if not mask.all():
            inputs["attention_mask"] = self._to_device(mask.astype(np.int64))
        if type_ids is not None:
            inputs["token_type_ids"] = self._to_device(type_ids)
        return inputs, self._to_device(batch.tokens.lengths)

    def _to_device(self, array: np.ndarray) -> torch.Tensor:
        tensor = torch.from_numpy(array)
        return (
            tensor.pin_memory().to(self.device, non_blocking=True)
            if self.device.startswith("cuda")
            else tensor.to(self.device)
        )


class TorchOutput:
    """Values that may still be on their way: on CUDA the copy to pinned memory was only begun."""

    def __init__(self, values: torch.Tensor) -> None:
        self._event = None
        self._values = values
        if values.is_cuda:
            self._values = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
            self._values.copy_(values, non_blocking=True)
            self._event = torch.cuda.Event()
            self._event.record(torch.cuda.current_stream(values.device))

    def numpy(self) -> Float32s:
        if self._event is not None:
            self._event.synchronize()
        values: Float32s = self._values.cpu().numpy()
        return values


def _load_weights(description: ModelDescription, reduction: Reduction, dtype: torch.dtype) -> Any:
    from transformers import AutoModel, AutoModelForSequenceClassification

    auto = AutoModelForSequenceClassification if reduction.kind == "classify" else AutoModel
    with quiet():
        try:
            model, loading = auto.from_pretrained(
                description.folder, dtype=dtype, use_safetensors=True, local_files_only=True, trust_remote_code=False,
                output_loading_info=True,
            )  # fmt: skip
        except (OSError, ValueError, RuntimeError, KeyError, ImportError) as error:
            raise ModelError(f"{description.folder}: cannot be loaded for {description.task}: {error}") from error
    # Embeddings come from the last hidden state, so a pooler that was never trained is not used.
    missing = sorted(k for k in loading["missing_keys"] if reduction.kind == "classify" or not k.startswith("pooler."))
    if missing:
        listing = ", ".join(missing[:4]) + (" ..." if len(missing) > 4 else "")
        raise ModelError(
            f"{description.folder}: has no weights for {listing}, so its "
            f"outputs for {description.task} would be random. Is it the right model or --task?"
        )
    if reduction.kind == "classify" and model.config.num_labels != reduction.width:
        raise ModelError(
            f"{description.folder}: {model.config.num_labels} labels in the model, {reduction.width} in its config"
        )
    return model.eval()


def _pad_id(config: Any) -> int:
    """The model's padding id. Where it has none (GPT-2), its head is told of one that no text has, and so reads a row's
    last token, as it does for a row alone; the trial then finds that such a model cannot be padded."""
    pad = getattr(config, "pad_token_id", None)
    if pad is None:
        config.pad_token_id = -1
        return 0
    return int(pad)


def _positions(model: nn.Module) -> int | None:
    """Tokens that a learned position table can place. RoBERTa-like tables begin behind their padding index."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Embedding) and name.endswith(("position_embeddings", "wpe")):
            return module.num_embeddings - (module.padding_idx + 1 if module.padding_idx is not None else 0)
    return None
