"""For people who have a Polars frame: a function for Expr.map_batches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa

from packhorse.errors import UsageError
from packhorse.integrations.rows import RowPredictor


class Predictor:
    """A series of texts to a series of structs: the columns of a run's output.

    >>> predict = Predictor("sentence-transformers/all-MiniLM-L6-v2")  # doctest: +SKIP
    >>> frame.with_columns(made=pl.col("text").map_batches(predict, return_dtype=predict.dtype))  # doctest: +SKIP
    """

    def __init__(self, model: str | Path, **settings: Any) -> None:
        """settings: those of packhorse.load(). Raises UsageError, RefusedError or ModelError."""
        self._predict = RowPredictor(model, settings)

    @property
    def dtype(self) -> Any:
        """polars.Struct of the columns that are made."""
        import polars

        return polars.from_arrow(pa.schema(self._predict.fields()).empty_table()).to_struct("made").dtype

    def __call__(self, texts: Any) -> Any:
        """texts: a polars.Series of strings, or of structs whose fields are the columns of a template; [n] structs.

        Raises UsageError for another type.
        """
        import polars

        if texts.dtype in (polars.Null, polars.Categorical, polars.Enum):
            texts = texts.cast(polars.String)
        if texts.dtype == polars.Struct:
            frame = texts.struct.unnest()
        elif texts.dtype == polars.String:
            frame = texts.alias("text").to_frame()
        else:
            raise UsageError(f"a series of {texts.dtype}: legal are strings, and structs of the columns of a template")
        made = self._predict(frame.to_arrow(compat_level=polars.CompatLevel.oldest()))
        return polars.from_arrow(made).to_struct(texts.name)
