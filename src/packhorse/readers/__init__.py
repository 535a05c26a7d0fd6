"""Stage 1, read: a reader is one file in this folder, found by the extensions it names.

A reader module has EXTENSIONS and `open_files(files, **settings) -> Reader`; SETTINGS names what it takes of the
reader's options. READS_LINES says that its files may be compressed, or standard input. Columns that hold text come out
as large_string; every other column as it is in the file.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from types import ModuleType
from typing import Any

from packhorse.errors import UsageError
from packhorse.files import all_below, full, is_file, is_folder, is_remote, lies_in, matching, name_of
from packhorse.readers.appended import AppendedReader
from packhorse.readers.dataset import PREFIX as DATASET
from packhorse.readers.dataset import open_dataset
from packhorse.readers.options import FLAGS, ReaderOptions
from packhorse.readers.sources import CODECS, STANDARD_INPUT, OnWait, no_look, without_compression
from packhorse.stages import Reader

DEFAULTS = ReaderOptions()
Formats = dict[str, ModuleType]  # by name: jsonl


def open_input(
    address: str,
    apart_from: Sequence[Any] = (),
    options: ReaderOptions = DEFAULTS,
    groups: Sequence[Sequence[str]] | None = None,
    on_wait: OnWait = no_look,
) -> Reader:
    """The reader of a file, folder or glob, of `dataset:NAME`, or of standard input, `-`. Files are taken in the order
    of their full path.

    A glob does not take what lies in the places of `apart_from`: the output of this very command. A format that is
    asked for holds for files of any name; in a folder it picks those with its extensions, or, without any, all. Text
    beside other formats in a folder is no data, unless it is asked for. groups: these files instead of those found
    there, in that order, with the columns of the first group. on_wait: called before each read of
    standard input, and now and then while it is silent; may raise.

    Raises UsageError when nothing is there, when the format is unknown, when formats are mixed, or for a setting that
    the format does not have.
    """
    if address.startswith(DATASET):
        check_no_options(options, f"{address} is a dataset")
        return open_dataset(address)
    formats = _formats()
    if address == STANDARD_INPUT:
        files, name = [STANDARD_INPUT], "jsonl" if options.input_format == "auto" else options.input_format
    else:
        files, name = _files(address, formats, apart_from, options.input_format)
    module = formats[name]
    _check_lines(address, files, name, module)
    settings = getattr(module, "SETTINGS", ())
    unfit = [setting for setting in options.given() if setting not in settings]
    if unfit:
        legal = " and ".join(n for n, m in formats.items() if unfit[0] in getattr(m, "SETTINGS", ()))
        raise UsageError(
            f"{FLAGS[unfit[0]]}: {address} is read as {name}, and only {legal} has that; drop it, or say --input-format"
        )
    given = {setting: getattr(options, setting) for setting in settings}
    if _reads_lines(module):
        given["on_wait"] = on_wait
    first, *others = groups or [files]
    reader: Reader = module.open_files(first, **given)
    if getattr(module, "TAKES_COLUMNS", False):
        given["columns"] = reader.schema()
    return AppendedReader([reader, *(module.open_files(g, **given) for g in others)]) if others else reader


def check_no_options(options: ReaderOptions, seen: str = "the input is in memory") -> None:
    """Raises UsageError where rows that come from no file, as `seen` says, come with settings for reading files."""
    given = [*map(FLAGS.get, options.given()), *(["--input-format"] if options.input_format != "auto" else [])]
    if given:
        raise UsageError(f"{given[0]} is for files, and {seen}: drop it")


def extensions() -> list[str]:
    """Of all formats that are read: .parquet, .jsonl and so on."""
    return [extension for module in _formats().values() for extension in module.EXTENSIONS]


def _formats() -> Formats:
    found = {m.name: importlib.import_module(f"{__name__}.{m.name}") for m in pkgutil.iter_modules(__path__)}
    return {name: module for name, module in found.items() if hasattr(module, "EXTENSIONS")}


def _format_of(address: str, formats: Formats) -> str | None:
    """By the extension, that before .gz where the format can be compressed."""
    plain, compression = without_compression(address)
    suffix = PurePosixPath(plain).suffix.lower()
    for name, module in formats.items():
        if suffix in module.EXTENSIONS and (compression is None or _reads_lines(module)):
            return name
    return None


def _reads_lines(module: ModuleType) -> bool:
    return bool(getattr(module, "READS_LINES", False))


def _is_note(module: ModuleType) -> bool:
    return bool(getattr(module, "IS_OFTEN_A_NOTE", False))


def _check_lines(address: str, files: Sequence[str], name: str, module: ModuleType) -> None:
    if _reads_lines(module):
        return
    if address == STANDARD_INPUT:
        raise UsageError(
            f"--input-format {name}: {name} is read from its end on, which standard input has not; give a file"
        )
    for file in files:
        if without_compression(file)[1]:
            raise UsageError(f"{file}: {name} is compressed inside, not as a file; decompress it first")


def _files(address: str, formats: Formats, apart_from: Sequence[Any], asked: str) -> tuple[list[str], str]:
    """The files, sorted, and the name of their format."""
    if is_file(address):
        name = _format_of(address, formats) if asked == "auto" else asked
        if name is None:
            suffix = "".join(PurePosixPath(name_of(address)).suffixes[-2:]) or "no extension"
            raise UsageError(f"{address}: {suffix} is no format read here; {_legal(formats)}")
        return [full(address)], name
    found = _found(address, apart_from)
    named = {file: _format_of(file, formats) for file in found}
    files = [file for file in found if named[file] is not None]
    if is_folder(address):
        files = [file for file in files if not _is_note(formats[str(named[file])])] or files
    if asked != "auto":
        of_that_name = [file for file in found if named[file] == asked]
        return (of_that_name if is_folder(address) and of_that_name else found) or _nothing(address), asked
    names = {str(named[file]) for file in files}
    if len(names) > 1:
        seen = sorted({PurePosixPath(without_compression(file)[0]).suffix for file in files})
        raise UsageError(
            f"{address}: files of different formats ({', '.join(seen)}); give a glob that takes one of them"
            + (", or --input-format" if is_folder(address) else "")
        )
    return files or _nothing(address), names.pop()


def _found(address: str, apart_from: Sequence[Any]) -> list[str]:
    if is_folder(address):
        root = full(address).rstrip("/") + "/"
        return sorted(file for file in all_below(address) if _is_data(file.removeprefix(root)))
    found = set(matching(address))  # a/**/**/*.csv matches a file more than once
    return sorted(f for f in found if not any(lies_in(f, str(place)) for place in apart_from))


def _nothing(address: str) -> list[str]:
    what = (
        f"no file with {', '.join(extensions())} in it"
        if is_folder(address)
        else "there is no such file, folder or match"
    )
    if not is_remote(address) and Path(address).exists() and not is_folder(address):
        what = "is no file but a pipe or a device, which cannot be read twice; redirect it: packhorse run ... - < it"
    raise UsageError(f"input {address}: {what}")


def _legal(formats: Formats) -> str:
    named = ", ".join(extensions())
    lines = ", ".join(name for name, module in formats.items() if _reads_lines(module))
    return (
        f"legal are {named}, and {', '.join(CODECS)} after those of {lines}; "
        f"--input-format ({', '.join(formats)}) says what a file of another name is"
    )


def _is_data(relative: str) -> bool:
    """Names that start with _ or . are bookkeeping, as in Hive and Spark."""
    return not any(part.startswith(("_", ".")) for part in relative.split("/"))
