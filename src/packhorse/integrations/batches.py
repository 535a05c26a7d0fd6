"""Batches of a pipeline, pyarrow, pandas or numpy, as tables, and back with the columns that were made."""

from __future__ import annotations

import contextlib
from typing import Any

import numpy as np
import pyarrow as pa

from packhorse.data import RowError
from packhorse.errors import UsageError
from packhorse.integrations.rows import RowPredictor
from packhorse.readers.given import as_text_column

Errors = dict[int, RowError]


def with_predictions(batch: Any, predict: RowPredictor) -> Any:
    """The batch in its own format, the columns that were made behind its own; errors as RowPredictor raises them.

    batch: a pyarrow.Table, a pandas.DataFrame or a dict of numpy arrays [n, ...]. As numpy, embeddings are [n, D] in
    their own type (zeros in a row that is in error), texts and `error` (None, or {kind, message}) are objects.
    """
    if isinstance(batch, pa.Table):
        made = predict(batch)
        return pa.table([*batch.columns, *made.columns], schema=pa.schema([*batch.schema, *made.schema]))
    if isinstance(batch, dict):
        predict.check_names(batch)
        columns = {name: values for name, values in batch.items() if np.ndim(values) == 1}
        made = predict(*table_of(_needed(columns, predict)))
        return batch | {name: _array(made[name]) for name in made.column_names}
    if hasattr(batch, "assign"):
        predict.check_names(map(str, batch.columns))
        once = batch.columns[~batch.columns.duplicated(keep=False)]
        made = predict(*table_of(_needed({str(name): batch[name] for name in once}, predict)))
        return batch.assign(**{name: _series(made[name], batch.index) for name in made.column_names})
    raise UsageError(
        f"a batch of type {type(batch).__name__}: legal are a pyarrow.Table, a pandas.DataFrame and a dict of arrays; "
        'give map_batches batch_format="pyarrow"'
    )


def _needed(columns: dict[str, Any], predict: RowPredictor) -> dict[str, Any]:
    """Of the first batch all, since it decides which they are."""
    reads = predict.reads
    return columns if reads is None else {name: values for name, values in columns.items() if name in reads}


def table_of(columns: dict[str, Any]) -> tuple[pa.Table, Errors]:
    """Columns of numpy or pandas as a table, and rows whose text is none. Objects for which Arrow has no type are no
    texts: their columns are not in it."""
    errors: Errors = {}
    found = {}
    for name, values in columns.items():
        with contextlib.suppress(pa.ArrowException):
            found[name] = _column(values, errors)
    return pa.table(found), errors


def _column(values: Any, errors: Errors) -> pa.Array:
    """Texts with an error for each that is none; what holds no text as Arrow reads it."""
    if getattr(values, "dtype", None) is not None and values.dtype.kind in "biufmM":
        return pa.array(values)
    plain = [None if _is_missing(value) else value for value in values]
    if any(isinstance(value, str) for value in plain) or all(value is None for value in plain):
        return as_text_column([str(v) if isinstance(v, np.str_) else v for v in plain], errors)
    return pa.array(plain)


def _is_missing(value: Any) -> bool:
    """None, pandas.NA and NaN: all of them mean that there is no text."""
    return value is None or type(value).__name__ == "NAType" or (isinstance(value, float) and value != value)


def _array(column: pa.ChunkedArray) -> np.ndarray:
    """[n], or [n, D] of lists of one length."""
    whole = column.combine_chunks()
    if pa.types.is_fixed_size_list(column.type):
        found = np.zeros((len(whole), column.type.list_size), column.type.value_type.to_pandas_dtype())
        found[whole.is_valid().to_numpy(zero_copy_only=False)] = (
            whole.flatten().to_numpy(zero_copy_only=False).reshape(-1, column.type.list_size)
        )
        return found
    if pa.types.is_floating(column.type) or pa.types.is_integer(column.type):
        values: np.ndarray = whole.to_numpy(zero_copy_only=False)
        return values
    return _objects(column)


def _series(column: pa.ChunkedArray, index: Any) -> Any:
    """Numbers as numbers; texts as objects, which pandas would otherwise make NaN where there is none."""
    import pandas

    values = _objects(column)
    return pandas.Series(values, index, values.dtype)


def _objects(column: pa.ChunkedArray) -> np.ndarray:
    """[n] objects; numbers as numbers."""
    if pa.types.is_floating(column.type) or pa.types.is_integer(column.type):
        return _array(column)
    values = np.empty(len(column), object)
    values[:] = column.to_pylist()
    return values
