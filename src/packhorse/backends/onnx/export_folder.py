"""A model folder with a graph in the place of the weights."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

from packhorse.backends.onnx.build import build
from packhorse.backends.onnx.cache import NAME, forget
from packhorse.backends.onnx.providers import Provider
from packhorse.errors import ModelError
from packhorse.load_request import LoadRequest

# The small files that describe a model and its tokenizer.
KEPT = ("*.json", "*.txt", "*.model", "*.jinja")
INDEX = ".index.json"  # of weights that stay behind


def export_folder(request: LoadRequest, provider: Provider, folder: Path) -> None:
    """Writes model.onnx beside the files that `describe` and the tokenizer read, in the source's own layout."""
    built = build(request, provider, prefer_weights=True)
    try:
        root = model_root(request.description.folder)
        home = folder / request.description.folder.relative_to(root)
        for file in described_files(root):
            target = folder / file.relative_to(root)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, target)
        home.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(built.path, home / NAME)
        for weights in built.facts.external:  # of a large graph, by the names that stand in it
            (home / weights).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(built.path.parent / weights, home / weights)
    finally:
        forget(built.folder)


def model_root(folder: Path) -> Path:
    """The model's folder, from that of its transformer: a sentence-transformers one may lie a folder deeper."""
    return folder.parent if (folder.parent / "modules.json").is_file() and _names(folder) else folder


def _names(folder: Path) -> bool:
    try:
        modules = json.loads((folder.parent / "modules.json").read_text(encoding="utf-8"))
        return any(module["path"] == folder.name for module in modules)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{folder.parent / 'modules.json'}: cannot be read: {error}") from error


def described_files(root: Path) -> Iterator[Path]:
    """Small files of the root and, for sentence-transformers, of its modules."""
    modules = root / "modules.json"
    folders = [root]
    if modules.is_file():
        paths = [m["path"] for m in json.loads(modules.read_text(encoding="utf-8"))]
        folders += [root / path for path in dict.fromkeys(paths) if path and (root / path).is_dir()]
    for folder in folders:
        for pattern in KEPT:
            yield from (p for p in sorted(folder.glob(pattern)) if not p.name.endswith(INDEX))
