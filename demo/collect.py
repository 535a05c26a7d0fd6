"""Docstrings of installed packages, read from their source without importing them."""

from __future__ import annotations

import ast
import hashlib
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

STDLIB = "stdlib"
# What nobody looks for: tests, and whole applications that the standard library carries.
SKIPPED_FOLDERS = frozenset({"test", "tests", "idlelib", "lib2to3", "turtledemo", "__pycache__"})
# Texts counted at once: a cap reached in the first texts leaves the rest uncounted.
BLOCK = 2_048
SCHEMA = pa.schema([("id", pa.int64()), ("package", pa.string()), ("name", pa.string()), ("text", pa.string())])

CountTokens = Callable[[Sequence[str]], Sequence[int]]


class Docstring(NamedTuple):
    """One docstring and where it comes from."""

    package: str
    name: str
    text: str


class Collection(NamedTuple):
    """The docstrings of some packages, and the files that could not be parsed."""

    rows: list[Docstring]
    unparsed: list[Path]


def source_files(root: Path) -> list[Path]:
    """Python files under root that can be imported by name, sorted by path."""
    return sorted(_walk(root), key=lambda path: path.relative_to(root).parts)


def _walk(folder: Path) -> Iterator[Path]:
    for entry in folder.iterdir():
        # Names such as `site-packages` and `lib-dynload` cannot be imported.
        if not entry.stem.isidentifier() or entry.name in SKIPPED_FOLDERS:
            continue
        if entry.suffix == ".py" and entry.is_file():
            yield entry
        elif not entry.suffix and entry.is_dir() and not entry.is_symlink():  # a link could lead back up
            yield from _walk(entry)


def module_name(package: str, relative: Path) -> str:
    """The dotted name under which a package's file is imported."""
    parts = [*relative.parts[:-1], relative.stem]
    if parts[-1] == "__init__":
        parts.pop()
    return ".".join(parts if package == STDLIB else [package, *parts])


def docstrings(source: bytes, module: str) -> Iterator[tuple[str, str]]:
    """(dotted name, text) of the module, its classes, functions and methods, in order of lines."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # other people's invalid escapes
        tree = ast.parse(source)
    yield from _own_docstring(tree, module)
    yield from _inner_docstrings(tree, module)


def _inner_docstrings(node: ast.AST, prefix: str) -> Iterator[tuple[str, str]]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            name = f"{prefix}.{child.name}"
            yield from _own_docstring(child, name)
            # What a function defines inside has no name that a reader could look up.
            if isinstance(child, ast.ClassDef):
                yield from _inner_docstrings(child, name)
        elif isinstance(child, ast.stmt | ast.ExceptHandler | ast.match_case):
            yield from _inner_docstrings(child, prefix)


def _own_docstring(
    node: ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef, name: str
) -> Iterator[tuple[str, str]]:
    text = (ast.get_docstring(node) or "").strip()
    if text:
        # A lone surrogate is legal in a Python string and not in UTF-8.
        yield name, text.encode("utf-8", "replace").decode("utf-8")


def collect(roots: Mapping[str, Path]) -> Collection:
    """All docstrings below the packages' folders, sorted by package, path and line."""
    found = Collection([], [])
    for package, root in sorted(roots.items()):
        for path in source_files(root):
            module = module_name(package, path.relative_to(root))
            try:
                inside = list(docstrings(path.read_bytes(), module))
            except (SyntaxError, ValueError, RecursionError, OSError):
                found.unparsed.append(path)
                continue
            found.rows.extend(Docstring(package, name, text) for name, text in inside)
    return found


def within_caps(
    rows: Sequence[Docstring], max_rows: int, max_tokens: int, count_tokens: CountTokens
) -> list[Docstring]:
    """As many rows as both caps allow, spread evenly by a hash of their names, in their old order."""
    spread = sorted(range(len(rows)), key=lambda row: (_hash(rows[row].name), row))[:max_rows]
    kept: list[int] = []
    tokens = 0
    for start in range(0, len(spread), BLOCK):
        block = spread[start : start + BLOCK]
        for row, length in zip(block, count_tokens([rows[row].text for row in block]), strict=True):
            tokens += length
            if tokens > max_tokens:
                return [rows[row] for row in sorted(kept)]
            kept.append(row)
    return [rows[row] for row in sorted(kept)]


def _hash(name: str) -> bytes:
    return hashlib.sha256(name.encode()).digest()


def as_table(rows: Sequence[Docstring]) -> pa.Table:
    """Columns id, package, name and text."""
    packages, names, texts = zip(*rows, strict=True) if rows else ((), (), ())
    return pa.table([range(len(rows)), packages, names, texts], schema=SCHEMA)


def write_once(path: Path, build: Callable[[], pa.Table]) -> bool:
    """Write the table that `build` makes, unless the file is there. True if it was written."""
    if path.exists():
        return False
    table = build()
    path.parent.mkdir(parents=True, exist_ok=True)
    # Half a file under the final name would be kept for ever.
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        pq.write_table(table, temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return True
