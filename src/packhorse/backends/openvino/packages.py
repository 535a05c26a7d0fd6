"""OpenVINO and NNCF, imported where they are first needed, quietly and without their telemetry."""

from __future__ import annotations

import contextlib
import io
import logging
import sys
from collections.abc import Iterator
from importlib import import_module
from typing import Any

from packhorse.errors import UsageError

TELEMETRY = "openvino_telemetry"


def import_openvino() -> Any:
    """Raises UsageError where it is not installed."""
    return _imported("openvino")


def import_nncf() -> Any:
    """Raises UsageError where it is not installed."""
    before = logging.getLoggerClass()
    nncf = _imported("nncf")
    logging.setLoggerClass(before)  # nncf makes its own class that of every logger in the process
    import_module("nncf.common.logging.logger").set_log_level(logging.CRITICAL)
    return nncf


@contextlib.contextmanager
def silenced() -> Iterator[None]:
    """Nothing reaches stdout or stderr inside the block: NNCF draws progress bars that no option turns off."""
    nowhere = io.StringIO()
    with contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
        yield


def _imported(name: str) -> Any:
    if sys.modules.get(name) is not None:
        return sys.modules[name]
    try:
        with _no_telemetry():
            return import_module(name)
    except ImportError as error:
        raise UsageError(f"--backend openvino needs {name} ({error}): pip install 'packhorse[openvino]'") from error


@contextlib.contextmanager
def _no_telemetry() -> Iterator[None]:
    """openvino_telemetry reports every import to Google Analytics unless a file in the user's home declines. Both
    packages take a stub instead where it is not installed; inside the block it is not. No file is written for it."""
    before = sys.modules.get(TELEMETRY)
    sys.modules[TELEMETRY] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        if before is None:
            del sys.modules[TELEMETRY]
        else:
            sys.modules[TELEMETRY] = before
