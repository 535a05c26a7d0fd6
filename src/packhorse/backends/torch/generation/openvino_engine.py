"""Continuous batching by the continuous engine's schedule, the forward by OpenVINO on a CPU."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import numpy as np
import torch

from packhorse.backends.torch.generation.continuous import Writing, write
from packhorse.backends.torch.generation.continuous_probe import PRECISIONS, differs
from packhorse.backends.torch.generation.memory import out_of_memory_named
from packhorse.backends.torch.generation.openvino_graph import graph_of
from packhorse.backends.torch.generation.openvino_model import OpenVINOModel
from packhorse.backends.torch.generation.paged_batch import PagedBatch
from packhorse.backends.torch.generation.proving import FAILURES
from packhorse.backends.torch.generation.stepping import Stepper
from packhorse.data import Tokens
from packhorse.errors import DeviceOutOfMemoryError, UsageError, first_line
from packhorse.generation import Generated, Prompts
from packhorse.packing.attention import PackingError
from packhorse.packing.probe import TOLERANCE, error
from packhorse.stages import OnStep

FAR, FAR_STEPS = 1_024, 8  # tokens of a longer prompt, and of its end that is compared
INSTEAD = "--engine auto takes another"


class OpenVINOEngine:
    """For models that the continuous engine takes, in fp32 and bf16."""

    engine = "openvino"

    def __init__(
        self, model: Any, stepper: Stepper, threads: int, trial: Tokens, longest: int | None = None
    ) -> None:  # fmt: skip
        """threads: inside an operator. trial: a few prompts of this model's vocabulary. longest: tokens that a prompt
        and its output may have together; None where that is not known. Converts, which takes seconds and the memory of
        the weights twice more. Raises UsageError where the model cannot be converted, or where the converted
        one has other logits."""
        self._stepper = stepper
        self._model = _proven(model, threads, trial, longest)

    def generate(self, prompts: Prompts, max_rows: int, max_prefill_tokens: int, on_step: OnStep) -> Generated:
        """As ContinuousEngine.generate(). Raises DeviceOutOfMemoryError."""
        batch: PagedBatch[Writing] = PagedBatch(self._model)
        try:
            with out_of_memory_named("cpu"):
                return write(batch, self._stepper, prompts, max_rows, max_prefill_tokens, on_step)
        except MemoryError as error:
            raise DeviceOutOfMemoryError(f"blocks of keys and values: {first_line(error)}") from error
        finally:
            self._model.clear()


def _differs_far(model: Any, converted: OpenVINOModel, trial: Tokens, longest: int | None) -> str | None:
    """What short prompts would not show: angles of large positions, computed in too few bits."""
    positions = getattr(model.config.get_text_config(decoder=True), "max_position_embeddings", None)
    length = min(n for n in (FAR, longest, positions) if n)
    if length <= FAR_STEPS:
        return None
    text = np.resize(trial.ids, length)
    with torch.inference_mode():
        ids = torch.from_numpy(text.astype(np.int64))[None]
        expected = model(input_ids=ids, use_cache=False, logits_to_keep=FAR_STEPS).logits[0].float().numpy()
    batch: PagedBatch[Writing] = PagedBatch(converted)
    _, (keys,) = batch.prefill([text[:-FAR_STEPS]])
    seen, _ = batch.prefill([text[-FAR_STEPS:][: 1 + i] for i in range(FAR_STEPS)], keys)
    difference = error(expected, seen.numpy())
    if difference <= TOLERANCE[PRECISIONS[model.dtype]]:
        return None
    return f"at {length:,} tokens, logits differ from those of plain transformers by {difference:.2g} of their spread"


def _proven(model: Any, threads: int, trial: Tokens, longest: int | None) -> OpenVINOModel:
    from packhorse.backends.openvino.packages import import_openvino

    import_openvino()
    frontend = import_module("openvino.frontend")
    foreign = (frontend.OpConversionFailure, frontend.OpValidationFailure, frontend.GeneralFailure)
    try:
        converted = OpenVINOModel(graph_of(model), PRECISIONS[model.dtype], threads)
        why_not = differs(model, "cpu", trial, PagedBatch(converted)) or _differs_far(model, converted, trial, longest)
    except (PackingError, *FAILURES, *foreign) as failure:
        raise UsageError(f"--engine openvino cannot take this model: {first_line(failure)}; {INSTEAD}") from failure
    if why_not is not None:
        raise UsageError(f"--engine openvino: converted, {why_not}; {INSTEAD}")
    converted.clear()
    return converted
