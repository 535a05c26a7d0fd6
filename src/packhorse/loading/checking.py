"""Settings that the model, its task and its backend allow."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

from packhorse.config import EngineConfig, GenerationSettings, PlacementSettings
from packhorse.data import ModelDescription
from packhorse.errors import UsageError
from packhorse.generation import Placement
from packhorse.placing import parse_placement

WRITING_BACKENDS = ("torch", "vllm", "null")
PLACING_BACKENDS = ("torch", "vllm")
OF_VALUES = ("scores", "pooling", "normalize", "embedding_format", "tolerance")  # settings of all but generation
OF_ALL_TASKS = ("long",)  # settings of generation that other tasks have too


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
    if backend == "vllm" and not about.writes:
        raise UsageError(f"--backend vllm: only generates, and this model does {about.task}: take --backend torch")
    if about.writes:
        _check_writing(s, about.task, backend)
        return
    unfit = [name for name in _given(s, GenerationSettings.model_fields) if name not in OF_ALL_TASKS]
    if unfit:
        flag = "--" + unfit[0].replace("_", "-")
        raise UsageError(f"{flag}: belongs to generation, and this model does {about.task}")


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


def _check_writing(s: EngineConfig, task: str, backend: str) -> None:
    if backend not in WRITING_BACKENDS:
        raise UsageError(f"--backend {backend}: {task} runs on {' or '.join(WRITING_BACKENDS)}")
    if s.engine != "auto" and backend != "torch":
        raise UsageError(f"--engine {s.engine}: belongs to --backend torch, this is {backend}")
    unfit = _given(s, OF_VALUES)
    if unfit:
        flag = "--" + unfit[0].replace("_", "-")
        raise UsageError(f"{flag}: belongs to classification and embeddings, and this model does {task}")
    if s.compile or s.batching != "auto":
        flag = "--compile" if s.compile else f"--batching {s.batching}"
        raise UsageError(f"{flag}: not for {task}, whose batches --engine and --batch-size decide")
