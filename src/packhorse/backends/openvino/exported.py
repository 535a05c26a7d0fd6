"""A folder with openvino_model.xml in the place of torch's weights."""

from __future__ import annotations

import shutil
from pathlib import Path

from packhorse.backends.openvino.cache import save
from packhorse.backends.openvino.model import find_graph
from packhorse.errors import ModelError
from packhorse.load_request import LoadRequest

# Configs, tokenizers and sentence-transformers' modules; never weights, which the graph holds.
COPIED = (".json", ".jsonl", ".txt", ".model", ".spm", ".jinja")
# What would be taken for another model's index, or another export's record.
LEFT_OUT = (".index.json", "packhorse.json")


def export_model(request: LoadRequest, folder: Path) -> None:
    """Writes the graph at the request's precision, its record, and all that its settings are read from.

    folder: as the root of the source model: a sentence-transformers model keeps its transformer where it was.
    Raises ModelError where the model cannot be converted or the folder not be written.
    """
    found = find_graph(request)
    source = request.description.folder
    root = _root(source)
    try:
        target = folder / source.relative_to(root)
        target.mkdir(parents=True, exist_ok=True)
        for path in _settings_files(root):
            copy = folder / path.relative_to(root)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copy)
        save(target, found.model, found.record)
    except OSError as error:
        raise ModelError(f"{folder}: cannot be written: {error}") from error


def _root(source: Path) -> Path:
    """The folder with modules.json, which may be the one above the transformer's own."""
    return source.parent if not _is_root(source) and _is_root(source.parent) else source


def _is_root(folder: Path) -> bool:
    return (folder / "modules.json").is_file()


def _settings_files(root: Path) -> list[Path]:
    """Of the folder and of the modules' folders in it."""
    files = [*root.glob("*"), *root.glob("*/*")]
    return sorted(
        p
        for p in files
        if p.is_file() and p.suffix in COPIED and not p.name.endswith(LEFT_OUT) and not p.parent.name.startswith(".")
    )
