"""Stage 4, forward: a backend is one file or folder here, found by its name, with

- `choose_device(devices)`, `supported_precisions(device)`, `default_batch_tokens(device, precision)`;
- `load_tokenizer(description) -> TokenizerParts`;
- `load(description, reduction, device, precision, threads, trial) -> LoadedModel`: `trial` are a few short rows of
  different lengths, the first two equal, to try the model on;
- `versions()`, `best_gemm(device, precision, threads)`, and NEEDS_WEIGHTS.
"""

from __future__ import annotations

import importlib
from types import ModuleType


def find_backend(name: str) -> ModuleType:
    """The module of that name."""
    return importlib.import_module(f"{__name__}.{name}")
