"""Settings that the model, its task and its backend allow."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from packhorse.config import OF_TASKS, WINDOWED, EngineConfig, GenerationSettings, PlacementSettings, TaskSettings
from packhorse.data import ModelDescription
from packhorse.errors import UsageError
from packhorse.generation import Placement
from packhorse.placing import parse_placement
from packhorse.stages import Generator, Laid, LoadedModel

WRITING_BACKENDS = ("torch", "vllm", "null")
PLACING_BACKENDS = ("torch", "vllm")
OF_VALUES = ("tolerance", *TaskSettings.model_fields, "scores", "pooling", "normalize", "embedding_format")
OF_ALL_TASKS = ("long", *OF_TASKS)  # settings of generation that other tasks have too


def check_settings(s: EngineConfig, about: ModelDescription, backend: str, precisions: Sequence[str]) -> None:
    """Raises UsageError for what the backend has not, and for settings of generation where nothing is written, or the
    other way round."""
    if s.precision not in ("auto", *precisions):
        raise UsageError(f"--precision {s.precision}: backend {backend} has {', '.join(precisions)}")
    for flag, value in (("--provider", s.provider), ("--onnx-file", s.onnx_file)):
        if backend != "onnx" and value not in (None, "auto"):
            raise UsageError(f"{flag} {value}: belongs to --backend onnx, this is {backend}")
    if s.compile and backend != "torch":
        raise UsageError(f"--compile: belongs to --backend torch, this is {backend}")
    _check_placing(s, backend)
    if about.task == "token-classification" and about.architecture.endswith("ForSequenceClassification"):
        raise UsageError(f"--task {about.task}: this model is a {about.architecture}: it labels texts, not tokens")
    if backend == "vllm" and not about.writes:
        raise UsageError(f"--backend vllm: only generates, and this model does {about.task}: take --backend torch")
    if about.writes:
        _check_writing(s, about.task, backend)
        return
    unfit = [name for name in _given(s, GenerationSettings.model_fields) if name not in OF_ALL_TASKS]
    if unfit:
        flag = "--" + unfit[0].replace("_", "-")
        raise UsageError(f"{flag}: belongs to generation, and this model does {about.task}")
    unfit = [name for name in _given(s, OF_TASKS) if about.task not in OF_TASKS[name]]
    if unfit:
        flag = "--" + unfit[0].replace("_", "-")
        raise UsageError(f"{flag}: belongs to {' or '.join(OF_TASKS[unfit[0]])}, and this model does {about.task}")
    if s.long == "windows" and about.task not in WINDOWED:
        raise UsageError(f"--long windows: not for {about.task}; it reads the first tokens of a text that is too long")
    reads_windows = s.long == "windows" or (s.long == "auto" and about.task == "question-answering")
    if s.stride is not None and not reads_windows:
        raise UsageError(f"--stride {s.stride}: goes with --long windows")
    if s.combine != "mean" and s.long != "windows":
        raise UsageError(f"--combine {s.combine}: goes with --long windows")
    if s.combine == "all" and about.task != "feature-extraction":
        raise UsageError(f"--combine all: a list of embeddings, and this model does {about.task}: mean, max or first")


def check_own_precision(s: EngineConfig, folder: Path, own: str | None) -> None:
    """Raises UsageError where something else is asked for than what a folder's own weights have. own: None of weights
    that can be had in any precision."""
    if own is None:
        return
    if s.precision not in ("auto", own):
        raise UsageError(
            f"--precision {s.precision}: the weights in {folder} are {own}; leave --precision out, or give a "
            "checkpoint that is not quantized"
        )
    if s.exact and own != "fp32":
        raise UsageError(
            f"--exact means fp32, and the weights in {folder} are {own}, which no setting makes exact again: leave "
            "--exact out, or give the checkpoint that they were made from"
        )


def _given(s: EngineConfig, names: Iterable[str]) -> list[str]:
    """Those that are not what they are by default."""
    return [name for name in names if getattr(s, name) != type(s).model_fields[name].default]


def placement_of(s: EngineConfig, backend: Any) -> Placement:
    """backend: a module of backends/. Raises UsageError, also where devices of --tensor-parallel are not here."""
    placement = parse_placement(s.device_map, s.max_memory, s.offload_folder, s.tensor_parallel)
    if not placement.tensor_parallel or not hasattr(backend, "parallel_devices"):
        return placement
    return dataclasses.replace(placement, devices=backend.parallel_devices(s))


def _check_placing(s: EngineConfig, backend: str) -> None:
    """vLLM says itself what it has of these."""
    if backend in PLACING_BACKENDS:
        return
    names = _given(s, PlacementSettings.model_fields)
    if names:
        flag = "--" + names[0].replace("_", "-")
        raise UsageError(f"{flag}: belongs to --backend {' or '.join(PLACING_BACKENDS)}, this is {backend}")


def _owners(setting: str) -> str:
    """Tasks that have it."""
    return " or ".join(OF_TASKS.get(setting, ("classification and embeddings",)))


def _check_writing(s: EngineConfig, task: str, backend: str) -> None:
    if backend not in WRITING_BACKENDS:
        raise UsageError(f"--backend {backend}: {task} runs on {' or '.join(WRITING_BACKENDS)}")
    if s.engine != "auto" and backend != "torch":
        raise UsageError(f"--engine {s.engine}: belongs to --backend torch, this is {backend}")
    unfit = _given(s, OF_VALUES)
    if unfit:
        flag = "--" + unfit[0].replace("_", "-")
        raise UsageError(f"{flag}: belongs to {_owners(unfit[0])}, and this model does {task}")
    if s.compile or s.batching != "auto":
        flag = "--compile" if s.compile else f"--batching {s.batching}"
        raise UsageError(f"{flag}: not for {task}, whose batches --engine and --batch-size decide")


def device_map_of(model: LoadedModel | Generator) -> dict[str, str] | None:
    """Of the plan: where --device-map put every module."""
    return dict(model.device_map) if isinstance(model, Laid) and model.device_map is not None else None


def batching(asked: str, model: LoadedModel) -> str:
    """The policy: what was asked for, as far as the model's outputs stay those of each row alone."""
    if model.is_packed:
        return "packed" if asked == "auto" else asked
    if asked == "packed":
        raise UsageError(f"--batching packed: this model runs padded ({'; '.join(model.notes)}); leave it out")
    if not model.pads_safely:
        return "equal"
    return "padded" if asked == "auto" else asked
