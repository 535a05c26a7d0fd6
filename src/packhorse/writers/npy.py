"""Embeddings as NumPy arrays, for numpy.load(path, mmap_mode="r"); the other columns beside them in Parquet.

    -o out/ --output-format npy     out/_part-000000.npy    [rows, d] of the part
                                    out/part-000000.parquet the other columns; what reads the folder as Parquet passes
                                                            over names that begin with an underscore
    -o x.npy                        x.npy                   [all rows, d]
                                    x.npy.parquet           the other columns, in the same order

A row in error is NaN in an array of floats and zeros in one of integers, where no value means "none": its error stands
in the Parquet file, and its embedding_scale is null. binary and ubinary have ceil(d / 8) bytes a row.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.lib import format as npy

from packhorse.data import EMBEDDING_FORMAT
from packhorse.errors import DamagedError, UsageError
from packhorse.stages import Writer
from packhorse.writers.parquet import ParquetWriter


def make() -> Writer:
    return NpyWriter()


class NpyWriter:
    """Two files: the other columns, and the array. A part has the name of the first, x.npy that of the second."""

    extension = ".parquet"

    def files(self, name: str) -> tuple[str, ...]:
        return (f"{name}.parquet", name) if name.endswith(".npy") else (name, f"_{name.removesuffix('.parquet')}.npy")

    def write(self, table: pa.Table, paths: Sequence[str]) -> None:
        """Raises UsageError where there is no embedding among the columns."""
        at = _vectors_at(table.schema)
        with Path(paths[1]).open("wb") as file:
            npy.write_array(file, _rows(table[at]), version=(1, 0), allow_pickle=False)
        ParquetWriter().write(table.remove_column(at), paths[:1])

    def assemble(self, parts: Sequence[Sequence[str]], paths: Sequence[str]) -> None:
        """The header first, with the final shape; then the rows of each part, in pieces of 1 MiB."""
        arrays = [Path(array) for _, array in parts]
        headers = [_header(array) for array in arrays]
        _, (_, width), dtype = headers[0]
        shape = (sum(num_rows for _, (num_rows, _), _ in headers), width)
        described = {"descr": npy.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
        with Path(paths[1]).open("wb") as whole:
            npy.write_array_header_1_0(whole, described)
            for array, (begin, _, _) in zip(arrays, headers, strict=True):
                with array.open("rb") as file:
                    file.seek(begin)
                    shutil.copyfileobj(file, whole, 1 << 20)
        ParquetWriter().assemble([part[:1] for part in parts], paths[:1])

    def merge(self, part: Sequence[str], rows: Sequence[int], table: pa.Table, paths: Sequence[str]) -> None:
        at = _vectors_at(table.schema)
        values = np.load(part[1], allow_pickle=False)
        values[list(rows)] = _rows(table[at])
        with Path(paths[1]).open("wb") as file:
            npy.write_array(file, values, version=(1, 0), allow_pickle=False)
        ParquetWriter().merge(part[:1], rows, table.remove_column(at), paths[:1])


def _vectors_at(schema: pa.Schema) -> int:
    found = [i for i, field in enumerate(schema) if EMBEDDING_FORMAT in (field.metadata or {})]
    if not found:
        raise UsageError("npy holds embeddings, and no column here is one: write parquet, jsonl or csv")
    return found[-1]  # one before it came with the input


def _rows(column: pa.ChunkedArray) -> np.ndarray:
    """[rows, width], without a copy where no row is null."""
    kind, width = column.type.value_type.to_pandas_dtype(), column.type.list_size
    chunk = column.combine_chunks()
    flat = chunk.values.slice(chunk.offset * width, len(chunk) * width).to_numpy(zero_copy_only=False)
    rows: np.ndarray = flat.astype(kind, copy=False).reshape(-1, width)
    if chunk.null_count:
        rows = rows.copy()
        rows[~chunk.is_valid().to_numpy(zero_copy_only=False)] = np.nan if rows.dtype.kind == "f" else 0
    return rows


def _header(path: Path) -> tuple[int, tuple[int, int], np.dtype]:
    """Where the rows begin in a part's file, the shape, the type. Raises DamagedError where it is no such array."""
    with path.open("rb") as file:
        try:
            npy.read_magic(file)
            (num_rows, width), _, dtype = npy.read_array_header_1_0(file)
        except ValueError as error:
            raise DamagedError(f"{path}: is no array of embeddings: {error}") from error
        return file.tell(), (num_rows, width), dtype
