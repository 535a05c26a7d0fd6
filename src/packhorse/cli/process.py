"""The process of a command: its environment and its signals."""

from __future__ import annotations

import os
import signal
import warnings
from types import FrameType
from typing import Any


def set_up() -> None:
    """Before anything heavy is imported; a variable that the user has set stays.

    Third-party logs, warnings and loading bars do not stand between our lines: what matters is raised as an error. And
    OpenMP's threads sleep while they wait: just as fast alone, and 2 to 3.5 times as fast on cores that others use too.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "critical")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")
    warnings.simplefilter("ignore")


def stop_on_signals(is_silent: bool) -> Any:
    """Ctrl-C or SIGTERM once: end after this batch and commit what is complete; twice: at once."""
    from packhorse.executors.local import Stop

    stop = Stop()

    def on_signal(signum: int, _frame: FrameType | None) -> None:
        if stop.event.is_set():
            os._exit(128 + signum)
        stop.set(signum)
        if not is_silent:
            os.write(2, b"\nstopping after this batch; once more to stop at once\n")

    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, on_signal)
    return stop
