"""For people who have a Daft pipeline: a class whose instance is used like a column function."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa

from packhorse.errors import UsageError
from packhorse.integrations.rows import RowPredictor, made_fields


def predictor(model: str | Path, *, gpus: int = 0, concurrency: int | None = None, cores: int | None = None,
              **settings: Any) -> Any:  # fmt: skip
    """A function of a column of texts, or of a struct of the columns of a template; it gives a column of structs, the
    columns of a run's output. The model is loaded once for each of `concurrency` instances.

    >>> predict = predictor("sentence-transformers/all-MiniLM-L6-v2")  # doctest: +SKIP
    >>> frame.with_column("made", predict(frame["text"]))  # doctest: +SKIP

    gpus, concurrency: as daft.cls takes them (gpus, max_concurrency). cores: of an instance; default all. settings:
    those of packhorse.load(). Raises UsageError, RefusedError or ModelError.
    """
    import daft

    made = pa.struct(made_fields(model, settings))

    @daft.cls(gpus=gpus, max_concurrency=concurrency)
    class Instance:
        def __init__(self) -> None:
            self._predict = RowPredictor(model, settings, cores)

        @daft.method.batch(return_dtype=daft.DataType.from_arrow_type(made))  # type: ignore[untyped-decorator]
        def predict(self, texts: Any) -> Any:
            found = self._predict(_table(texts.to_arrow()))
            return pa.StructArray.from_arrays([c.combine_chunks() for c in found.columns], found.column_names).cast(
                made
            )

    return Instance().predict


def _table(texts: pa.Array) -> pa.Table:
    if pa.types.is_null(texts.type):
        texts = texts.cast(pa.large_string())
    if pa.types.is_struct(texts.type):
        return pa.Table.from_struct_array(texts)
    if pa.types.is_large_string(texts.type) or pa.types.is_string(texts.type):
        return pa.table({"text": texts})
    raise UsageError(f"a column of {texts.type}: legal are strings, and structs of the columns of a template")
