"""Graphs that were made once, under the user's cache."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from packhorse.devices import host

NAME = "model.onnx"


def cache_folder() -> Path:
    return host.cache_folder() / "onnx"


def cached(key: str, make: Callable[[Path], None]) -> Path:
    """The folder of that key; `make` fills one beside it, which is renamed when it is whole.

    Where the cache cannot be written it is a temporary folder, which the caller deletes when the model is loaded.
    """
    home = cache_folder() / key
    if (home / NAME).is_file():
        return home
    try:
        home.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=f"{key[:16]}.", suffix=".tmp", dir=home.parent))
    except OSError:
        work = Path(tempfile.mkdtemp(prefix="packhorse-onnx-"))
        home = work
    try:
        make(work)
        with contextlib.suppress(OSError):  # another process was faster: its folder holds the same
            work.rename(home)
    finally:
        if work != home:
            shutil.rmtree(work, ignore_errors=True)
    return home


def forget(folder: Path) -> None:
    """Deletes the folder of `cached` if it is a temporary one."""
    if folder.parent != cache_folder() and folder.name.startswith("packhorse-onnx-"):
        shutil.rmtree(folder, ignore_errors=True)
