"""dataset:ORG/NAME[@REVISION][:CONFIG][:SPLIT] of the hub, or dataset:FOLDER[:SPLIT] from save_to_disk.

Rows stay in Arrow files that are mapped into memory: of a dataset of any size only the rows at hand are read.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from packhorse.data import Chunk, Position
from packhorse.errors import InputError, UsageError, did_you_mean
from packhorse.files import fingerprint
from packhorse.readers.columns import normalized, with_large_strings
from packhorse.readers.sample import even_rows
from packhorse.stages import Reader

PREFIX = "dataset:"
CHUNK_ROWS = 16_384
SAVED = ("state.json", "dataset_dict.json")  # of save_to_disk: one split, or several


class Opened(NamedTuple):
    """A datasets.Dataset, and what tells that it is the one of last time."""

    dataset: Any
    identity: list[dict[str, object]]


def open_dataset(address: str) -> Reader:
    """Raises UsageError where the package, the dataset, its config or its split is not there, with those that are."""
    name = address.removeprefix(PREFIX)
    local = _local(name)
    opened = _from_disk(address, *local) if local else _from_hub(address, name)
    return DatasetReader(opened)


class DatasetReader:
    """Rows of one split. A mark is a row's number."""

    raw_column: str | None = None
    rescues = False

    def __init__(self, opened: Opened) -> None:
        self._table, self._identity = opened.dataset.data, opened.identity
        self._rows = int(opened.dataset.num_rows)
        self.files: Sequence[str] = [str(file["filename"]) for file in opened.dataset.cache_files]
        self._row_bytes = int(self._table.nbytes) // max(self._rows, 1) + 1

    def schema(self) -> pa.Schema:
        return with_large_strings(self._table.schema.remove_metadata())

    def num_rows(self) -> int | None:
        return self._rows

    def progress(self, position: Position) -> float:
        return position.mark / max(self._rows, 1)

    def fingerprint(self) -> list[dict[str, object]]:
        return self._identity

    def spread(self, places: int) -> list[Position]:
        return even_rows([self._rows], places)

    def read(self, start: Position, columns: Sequence[str], text_columns: Sequence[str]) -> Iterator[Chunk]:
        """Chunks from a row on. Raises InputError."""
        wanted = list(dict.fromkeys([*columns, *text_columns]))
        for row in range(start.mark, self._rows, CHUNK_ROWS):
            try:
                piece = self._table.fast_slice(row, CHUNK_ROWS).select(wanted).replace_schema_metadata(None)
                table, errors = normalized(piece, text_columns)
            except (pa.ArrowException, OSError) as error:
                raise InputError(f"{self.files[0]}: cannot be read as Arrow at row {row}: {error}") from error
            marks = np.arange(row, row + table.num_rows + 1)
            yield Chunk(table, 0, marks, np.full(table.num_rows, self._row_bytes, np.int64), errors)


def _package(address: str) -> ModuleType:
    try:
        import datasets
    except ImportError as error:
        raise UsageError(f"input {address}: needs the package datasets; pip install 'packhorse[datasets]'") from error
    package: ModuleType = datasets
    return package


# -- folders


def _local(name: str) -> tuple[Path, str | None] | None:
    """The folder and perhaps the split; None where it can only be a name of the hub."""
    folder, _, split = name.rpartition(":")
    for path, part in ((name, None), (folder, split)):
        if path and Path(path).expanduser().is_dir():
            return Path(path).expanduser(), part
    if name.startswith(("/", ".", "~")) or name.count("/") > 1:
        raise UsageError(f"input {PREFIX}{name}: there is no such folder; of the hub it is {PREFIX}ORGANISATION/NAME")
    return None


def _from_disk(address: str, folder: Path, split: str | None) -> Opened:
    if not any((folder / name).is_file() for name in SAVED):
        raise UsageError(
            f"input {address}: holds no {' or '.join(SAVED)}, so save_to_disk did not write it; files of Parquet or "
            f"JSON lines are read as they are: {folder}"
        )
    datasets = _package(address)
    with _explained(datasets, address), _silent(datasets):
        found = datasets.load_from_disk(str(folder), keep_in_memory=False)
    if isinstance(found, Mapping):
        found = found[_split_of(address, list(map(str, found)), split)]
    elif split is not None:
        raise UsageError(f"input {address}: there is no such folder, and {folder} holds one split without a name")
    own = {"dataset": str(found._fingerprint), "num_rows": int(found.num_rows)}
    return Opened(found, [fingerprint(str(file["filename"])) | own for file in found.cache_files])


# -- the hub


def _from_hub(address: str, name: str) -> Opened:
    named, *parts = name.split(":")
    hub_id, _, revision = named.partition("@")
    if len(parts) > 2 or not hub_id:
        raise UsageError(f"input {address}: legal is {PREFIX}ORGANISATION/NAME[@REVISION][:CONFIG][:SPLIT]")
    datasets = _package(address)
    with _explained(datasets, address), _silent(datasets):
        configs = [str(c) for c in datasets.get_dataset_config_names(hub_id, revision=revision or None)]
        default = datasets.get_dataset_default_config_name(hub_id, revision=revision or None)
        config, split = _config_of(address, configs, default, parts)
        builder = datasets.load_dataset_builder(hub_id, config, revision=revision or None)
        split = _split_of(address, _splits(builder), split)
        builder.download_and_prepare()
        found = builder.as_dataset(split=split, in_memory=False)
    identity: dict[str, object] = {
        "path": f"{PREFIX}{hub_id}", "commit": str(builder.hash), "config": config, "split": split,
        "num_rows": int(found.num_rows),
    }  # fmt: skip
    return Opened(found, [identity])


def _config_of(address: str, configs: list[str], default: str | None, parts: list[str]) -> tuple[str, str | None]:
    """Config and split. What stands alone is a config where one is called so, else a split of the default config."""
    first, second = parts[0] if parts else "", parts[1] if len(parts) > 1 else None
    if first in configs:
        return first, second
    if first and second is not None:
        raise UsageError(f"input {address}: no config {first!r}{did_you_mean(first, configs)}; it has {_list(configs)}")
    only = default or (configs[0] if len(configs) == 1 else None)
    if only is None:
        wrong = f"no config {first!r}{did_you_mean(first, configs)}" if first else "which config?"
        raise UsageError(f"input {address}: {wrong} It has {_list(configs)}: {PREFIX}ORGANISATION/NAME:CONFIG:SPLIT")
    return only, second if second is not None else first or None


def _splits(builder: Any) -> list[str]:
    """Of the config: as its files are named, or, from the cache, as they were prepared."""
    return [str(name) for name in builder.config.data_files or builder.info.splits or ()]


def _split_of(address: str, splits: list[str], asked: str | None) -> str:
    """What was asked for, or the only one. Raises UsageError."""
    if asked in splits:
        return str(asked)
    if asked:
        raise UsageError(f"input {address}: no split {asked!r}{did_you_mean(asked, splits)}; it has {_list(splits)}")
    if len(splits) == 1:
        return splits[0]
    example = f"{address.rstrip(':')}:{splits[0] if splits else 'train'}"
    raise UsageError(f"input {address}: which split? It has {_list(splits)}: say {example}")


def _list(names: list[str]) -> str:
    return ", ".join(names[:20]) + (f" and {len(names) - 20} more" if len(names) > 20 else "")


@contextmanager
def _explained(datasets: ModuleType, address: str) -> Iterator[None]:
    """The package's errors as ours."""
    missing = datasets.exceptions.DatasetNotFoundError
    broken = datasets.exceptions.DatasetGenerationError
    token = (
        "HF_TOKEN opens what is yours" if not os.environ.get("HF_TOKEN") else "the token in HF_TOKEN does not open it"
    )
    try:
        yield
    except missing as error:
        raise UsageError(
            f"input {address}: there is no such dataset, or it is private or gated ({token}): {_brief(error)}"
        ) from error
    except ConnectionError as error:
        raise InputError(
            f"input {address}: the hub cannot be reached, and the cache does not have it: {_brief(error)}"
        ) from error
    except (broken, OSError, ValueError, RuntimeError, NotImplementedError, LookupError) as error:
        raise InputError(f"input {address}: cannot be read: {_brief(error)}") from error


def _brief(error: Exception) -> str:
    """Its first line, and that of what caused it: the package's own often says no more than that there was an error."""
    lines = [str(e).strip().splitlines()[0] for e in (error, error.__cause__) if e is not None and str(e).strip()]
    if isinstance(error, LookupError):  # an IndexError where save_to_disk wrote no file, for a dataset without rows
        lines = [f"the package datasets fails on it with {error!r}; does it hold any rows?"]
    return "; ".join(lines) or type(error).__name__


@contextmanager
def _silent(datasets: ModuleType) -> Iterator[None]:
    """Its bars do not stand between our lines."""
    was_shown = not datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if was_shown:
            datasets.enable_progress_bars()
