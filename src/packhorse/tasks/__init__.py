"""Stage 5, finish: reduced values to columns. One task a file, found by its name; `make(description, settings)`."""

from __future__ import annotations

import importlib

from packhorse.config import EngineConfig
from packhorse.data import ModelDescription
from packhorse.stages import Task


def make_task(description: ModelDescription, settings: EngineConfig) -> Task:
    """The task that the description names."""
    module = importlib.import_module(f"{__name__}.{description.task.replace('-', '_')}")
    task: Task = module.make(description, settings)
    return task
