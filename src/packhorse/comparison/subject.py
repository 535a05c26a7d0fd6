"""The model that is compared: what it does and how its outputs are made, read from its own files."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

from packhorse.comparison.contract import ModelSpec, Pooling
from packhorse.config import EngineConfig
from packhorse.data import ModelDescription, Reduction
from packhorse.errors import UsageError
from packhorse.models.describe import describe
from packhorse.models.find import Found, find_model
from packhorse.models.preflight import check_folder

NO_LIMIT_LENGTH = 512  # tokens, for a model that names no limit: padding to max_length needs a number
WEIGHTS = (".safetensors", ".bin", ".onnx", ".data", ".xml", ".gguf")


def find_subject(name: str | Path, task: str, max_length: int | None, revision: str | None = None) -> ModelSpec:
    """A folder or hub id, checked as for a run. Raises UsageError, ModelError or HostileModelError."""
    found = find_model(str(name), revision)
    check_folder(found.folder)
    return subject_of(found, Path(str(name)).name or str(name), task, max_length)


def subject_of(found: Found, name: str, task: str = "auto", max_length: int | None = None) -> ModelSpec:
    """What the folder's files say. Raises UsageError where plain transformers cannot compute the same outputs."""
    settings = EngineConfig.model_validate({"model": str(found.folder), "task": task, "max_length": max_length})
    description = describe(found, settings)
    if max_length and description.max_length and max_length > description.max_length:
        raise UsageError(f"--max-length {max_length}: the model takes at most {description.max_length} tokens")
    _refuse_what_the_plain_loops_lack(name, description)
    is_classifier = description.task == "text-classification"
    return ModelSpec(
        name=name,
        folder=found.folder,
        task="text-classification" if is_classifier else "embedding",
        max_length=max_length or description.max_length or NO_LIMIT_LENGTH,
        pooling=None if is_classifier else _pooling(name, description.pooling),
        normalize=not is_classifier and "normalize" in description.pooling.post,
        labels=description.labels,
        problem_type=description.problem_type,
        body=None if description.folder == found.folder else description.folder,
    )


def _refuse_what_the_plain_loops_lack(name: str, description: ModelDescription) -> None:
    if description.task not in ("text-classification", "feature-extraction"):
        raise UsageError(f"model {name}: bench compares text-classification and feature-extraction")
    if description.prompt:
        raise UsageError(f"model {name}: it puts a prompt before every text, which the plain loops of bench do not")
    if description.lower_case:
        raise UsageError(f"model {name}: it lower-cases every text itself, which the plain loops of bench do not")


def _pooling(name: str, reduction: Reduction) -> Pooling:
    modes, post = reduction.pooling, reduction.post
    if len(modes) == 1 and modes[0] in get_args(Pooling) and post in ((), ("normalize",)):
        mode: Pooling = modes[0]  # type: ignore[assignment]
        return mode
    raise UsageError(
        f"model {name}: pools by {' + '.join(modes)} with {len(post)} further steps; the plain loops of bench do "
        f"{', '.join(get_args(Pooling))}, with or without normalizing"
    )


def weights_bytes(folder: Path) -> int:
    """Bytes of all weight files of a model's folder."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.suffix in WEIGHTS and file.is_file())
