"""Stage 4, forward: a backend is one file or folder here, found by its name, with

- `PRECISIONS`, all it can load at all, and `NEEDS_WEIGHTS`, whether the folder must hold safetensors;
- `own_precision(description, settings)`, of a folder's own graph that has another than fp32, else None;
- `choose_device(settings)`, `supported_precisions(device)`, those the device has instructions for, fp32 first;
- `default_batch_tokens(device, precision, width)`, `num_workers(device, cores)`, forwards at the same time;
- `load_tokenizer(description) -> TokenizerParts`;
- `load(request) -> LoadedModel`;
- `is_prepared(request)`, whether all that load() would have to export, convert or quantize was kept by an earlier run;
- `can_compile(device)`, whether torch.compile could work there;
- `free_bytes(device)`, memory that this process may hold there, with what it holds already; None: not known;
- `versions()`;
- `best_gemm(device, precision, threads, seen)`, FLOP/s of the best matrix product, None where there is none;
- `ceilings(device, precisions, threads) -> Ceilings | None`, what is not yet known of the device measured now, and
  `known_ceilings(device, threads) -> Ceilings | None`, what earlier runs measured; None where there is no device.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType


def choose_backend(asked: str, folder: Path) -> str:
    """auto means torch, or what the folder's files are for where it has no weights that torch could read."""
    if asked != "auto":
        return asked
    files = {"torch": "*.safetensors", "openvino": "openvino_model.xml", "onnx": "*.onnx"}
    here = [
        name for name, pattern in files.items() if any(folder.glob(pattern)) or any(folder.glob(f"{name}/{pattern}"))
    ]
    return here[0] if here else "torch"


def find_backend(name: str) -> ModuleType:
    """The module of that name."""
    return importlib.import_module(f"{__name__}.{name}")
