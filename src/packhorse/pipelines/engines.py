"""The engine behind a pipeline: made for the settings of a call, kept for the calls after it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from packhorse.config import EngineConfig, validated
from packhorse.engine import Engine
from packhorse.errors import UsageError
from packhorse.loading.material import Material
from packhorse.models.find import find_model
from packhorse.models.hub_files import Wanted


class Engines:
    """One engine at a time. Where a call's settings change only what a task makes of the model's values, the model is
    handed on; else it is loaded again."""

    def __init__(self, settings: Mapping[str, Any], on_close: Callable[[], None]) -> None:
        """settings: of every engine. on_close: frees what the model lies in."""
        self._settings = dict(settings)
        self._on_close = on_close
        self._engine: Engine | None = None
        self._is_closed = False

    def get(self, of_task: Mapping[str, Any]) -> Engine:
        """The one with these settings too. Raises UsageError, RefusedError or ModelError."""
        self._check_open()
        wanted: EngineConfig = validated(EngineConfig, {**self._settings, **of_task})
        if self._engine is None or wanted != self._engine.settings:
            before, self._engine = self._engine, None
            try:
                self._engine = Engine(wanted, instead_of=before)
            finally:
                if self._engine is None and before is not None:
                    before.close()
        return self._engine

    def task(self) -> str:
        """Read from the model's files; no weight is."""
        material = Material(validated(EngineConfig, {**self._settings, "task": "auto"}))
        material.close()
        return material.description.task

    def folder(self) -> Path:
        """That of the model, of a hub model in the cache."""
        self._check_open()
        s: EngineConfig = validated(EngineConfig, self._settings)
        return find_model(s.model, s.revision, Wanted(s.backend, s.onnx_file)).folder

    def close(self) -> None:
        """Frees the model, and deletes a temporary folder."""
        self._is_closed = True
        if self._engine is not None:
            self._engine.close()
        self._engine = None
        self._on_close()

    def _check_open(self) -> None:
        if self._is_closed:
            raise UsageError("this pipeline was closed: make another one")
