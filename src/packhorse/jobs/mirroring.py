"""--mirror: which output file belongs to an input file, where shards end, and when an output is complete."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from pathlib import PurePosixPath

import pyarrow as pa

from packhorse.config import RunConfig
from packhorse.data import Chunk, Position
from packhorse.errors import UsageError
from packhorse.files import full, is_file, is_folder
from packhorse.outputs.manifest import STATE
from packhorse.outputs.mirrored import MirroredFolder
from packhorse.outputs.records import Commit
from packhorse.readers import extensions
from packhorse.readers.cut import ShardRows, cut_shards
from packhorse.readers.dataset import PREFIX as DATASET
from packhorse.readers.sources import STANDARD_INPUT, without_compression
from packhorse.stages import Writer

OUTPUT_OF = {"parquet": "parquet", "pq": "parquet", "csv": "csv", "tsv": "csv"}  # by the input's; else jsonl


def check_can_mirror(config: RunConfig, is_path: bool) -> None:
    """Raises UsageError for --mirror with an input that is no file."""
    if config.mirror and (not is_path or config.input == STANDARD_INPUT or config.input.startswith(DATASET)):
        raise UsageError(f"--mirror writes a file for each input file, and {config.input} is none; drop the flag")


def with_format(config: RunConfig, file: str) -> RunConfig:
    """The settings with the format of the output, which is that of the input unless another is asked for."""
    if not config.mirror or config.output_format != "auto":
        return config
    by_name = PurePosixPath(without_compression(file)[0]).suffix[1:].lower()
    given = by_name if config.input_format == "auto" else config.input_format
    return config.model_copy(update={"output_format": OUTPUT_OF.get(given, "jsonl")})


def output_names(address: str, files: Sequence[str], extension: str, writer: Writer) -> list[str]:
    """The output of each input file, relative to the output folder: its own name below the input folder, or below the
    part of a glob before the first wildcard, with another extension.

    Raises UsageError that names both inputs where two have the same output.
    """
    base, known = _base(address), extensions()
    names = [_output_name(file.removeprefix(base), extension, known) for file in files]
    owner: dict[str, str] = {}
    for file, name in zip(files, names, strict=True):
        if name.split("/")[0] == STATE:
            raise UsageError(f"--mirror: {file} would lie in {STATE}/, where the bookkeeping is; rename it")
        for made in writer.files(name):
            if made in owner:
                raise UsageError(f"--mirror: {owner[made]} and {file} would both be {made}; rename one of them")
            owner[made] = file
    return names


def _base(address: str) -> str:
    """With a slash at its end."""
    if is_folder(address):
        return full(address).rstrip("/") + "/"
    fixed = address if is_file(address) else address[: min(address.find(c) for c in "*?[" if c in address)]
    return full(fixed.rpartition("/")[0] + "/" * ("/" in fixed) or ".").rstrip("/") + "/"


def _output_name(relative: str, extension: str, known: Sequence[str]) -> str:
    folder, slash, name = relative.rpartition("/")
    plain, _ = without_compression(name)
    suffix = PurePosixPath(plain).suffix
    return folder + slash + (plain.removesuffix(suffix) if suffix.lower() in known else plain) + extension


def cut_files(
    chunks: Iterable[Chunk], start: Position, index: int, first_row: int, text_columns: Sequence[str],
    shard_rows: int | None, output_row_bytes: int, output_of_text: int = 0,
) -> Iterator[ShardRows]:  # fmt: skip
    """Shards as cut_shards has them, none of which spans two files."""
    for file, group in groupby(chunks, key=lambda chunk: chunk.file):
        begin = start if file == start.file else Position(file, 0)
        sizes = shard_rows, output_row_bytes, None, output_of_text
        for rows in cut_shards(group, begin, index, first_row, text_columns, *sizes):
            yield rows
            index, first_row = rows.shard.index + 1, rows.shard.first_row + rows.shard.num_rows


class Mirror:
    """Makes the output of an input file appear once all of its shards are committed."""

    def __init__(self, folder: MirroredFolder, names: Sequence[str], writer: Writer, empty: pa.Table) -> None:
        """Files that are complete already are put together. Raises RefusedError where others stand in their way.

        names: the output of each input file. empty: an output without rows.
        """
        self._folder, self._names, self._writer, self._empty = folder, names, writer, empty
        self._done, self._next = folder.done(), 0
        folder.check_free(names, self._done)
        self._commits: dict[int, list[Commit]] = {}
        for commit in folder.commits():
            self.committed(commit)

    def committed(self, commit: Commit) -> None:
        """The files before that of the shard are complete."""
        file = commit.shard.start.file
        self._complete(file)
        self._commits.setdefault(file, []).append(commit)

    def end(self) -> None:
        """All files are complete."""
        self._complete(len(self._names))

    def _complete(self, stop: int) -> None:
        for file in range(self._next, stop):
            commits = self._commits.pop(file, [])
            if file not in self._done:
                self._folder.complete(file, self._names[file], commits, self._writer.assemble, self._write_empty)
        self._next = max(self._next, stop)

    def _write_empty(self, paths: Sequence[str]) -> None:
        self._writer.write(self._empty, paths)
