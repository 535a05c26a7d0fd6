"""Stage 1, read: a reader is one file in this folder, found by the extensions it names.

A reader module has EXTENSIONS and `open_files(files) -> Reader`. Columns that hold text come out as
large_string; every other column as it is in the file.
"""

from __future__ import annotations

import glob
import importlib
import pkgutil
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from packhorse.errors import UsageError
from packhorse.stages import Reader


def open_input(address: str, apart_from: Sequence[Path] = ()) -> Reader:
    """The reader of a file, folder or glob. Files are taken in the order of their full path.

    A glob does not take what lies in the places of `apart_from`: the output of this very command.

    Raises UsageError when nothing is there, when the format is unknown or when formats are mixed.
    """
    formats = {ext: module for module in _modules() for ext in module.EXTENSIONS}
    files = _files(address, tuple(formats), apart_from)
    modules = {formats[Path(f).suffix.lower()] for f in files}
    if len(modules) > 1:
        seen = sorted({Path(f).suffix for f in files})
        raise UsageError(
            f"{address}: files of different formats ({', '.join(seen)}); give a glob that takes one of them"
        )
    return modules.pop().open_files(files)


def _modules() -> list[ModuleType]:
    found = [importlib.import_module(f"{__name__}.{m.name}") for m in pkgutil.iter_modules(__path__)]
    return [m for m in found if hasattr(m, "EXTENSIONS")]


def _files(address: str, extensions: tuple[str, ...], apart_from: Sequence[Path]) -> list[str]:
    path = Path(address)
    if path.is_file():
        if path.suffix.lower() not in extensions:
            raise UsageError(
                f"{address}: {path.suffix or 'no extension'} is no format read here; legal are {', '.join(extensions)}"
            )
        return [str(path.absolute())]
    if path.is_dir():
        found = [p for p in path.rglob("*") if _is_data(p.relative_to(path))]
    else:
        found = [Path(p) for p in glob.glob(address, recursive=True)]  # noqa: PTH207 - Path.glob takes no absolute pattern
        found = [p for p in found if not any(p.resolve().is_relative_to(place) for place in apart_from)]
    files = sorted(str(p.absolute()) for p in found if p.suffix.lower() in extensions and p.is_file())
    if not files:
        what = (
            f"no file with {', '.join(extensions)} in it" if path.is_dir() else "there is no such file, folder or match"
        )
        raise UsageError(f"input {address}: {what}")
    return files


def _is_data(relative: Path) -> bool:
    """Names that start with _ or . are bookkeeping, as in Hive and Spark."""
    return not any(part.startswith(("_", ".")) for part in relative.parts)
