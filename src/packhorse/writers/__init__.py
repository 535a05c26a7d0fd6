"""Stage 6, write: a writer is one file in this folder, found by its name, with a class instance from `make()`."""

from __future__ import annotations

import importlib

from packhorse.stages import Writer


def make_writer(extension: str) -> Writer:
    """The writer of .parquet, .jsonl, .csv or .npy."""
    writer: Writer = importlib.import_module(f"{__name__}.{extension.removeprefix('.')}").make()
    return writer
