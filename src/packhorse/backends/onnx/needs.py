"""The packages of `pip install 'packhorse[onnx]'`, imported at the point of use."""

from __future__ import annotations

import importlib
from typing import Any

from packhorse.errors import UsageError


def need(module: str) -> Any:
    """The module. Raises UsageError with the pip command where it is not installed."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.split(".")[0]
        raise UsageError(
            f"--backend onnx needs {package}, which cannot be imported ({error}): pip install 'packhorse[onnx]'"
        ) from error
