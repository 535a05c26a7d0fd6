"""Stage 4, forward: a backend is one file or folder here, found by its name, with

- `choose_device(devices) -> (kind, precisions it can)`: what it would run on;
- `load(description, reduction, device, precision, threads) -> LoadedModel`;
- `load_tokenizer(description) -> (tokenizer, whether the model takes token types)`.
"""

from __future__ import annotations

import importlib
from types import ModuleType


def find_backend(name: str) -> ModuleType:
    """The module of that name."""
    return importlib.import_module(f"{__name__}.{name}")
