"""RowPredictor, which every integration shares: batches as pipelines really hand them over."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

from packhorse.errors import UsageError
from packhorse.integrations.batches import with_predictions
from packhorse.integrations.polars import Predictor
from packhorse.integrations.rows import RowPredictor

TEXTS = pa.table({"text": ["a film", "a cat"], "id": [1, 2]})


@pytest.fixture
def predict(null_model: Path) -> Iterator[RowPredictor]:
    made = RowPredictor(null_model, {"backend": "null", "text_column": "text"}, cores=1)
    yield made
    made.close()


def kinds(rows: pa.Table) -> list[str | None]:
    return [error and error["kind"] for error in rows["error"].to_pylist()]


@pytest.mark.parametrize("named", [{"text_column": "text"}, {}])
def test_a_batch_without_any_text_gives_errors_and_does_not_end_the_pipeline(
    null_model: Path, named: dict[str, str]
) -> None:
    """Arrow gives such a column the type null; the first batch may be one."""
    made = RowPredictor(null_model, {"backend": "null", **named}, cores=1)
    assert kinds(with_predictions(pa.table({"text": pa.nulls(2)}), made)) == ["null_text"] * 2
    assert kinds(with_predictions(TEXTS, made)) == [None, None]
    made.close()


def test_batches_without_rows_come_first_and_in_between(predict: RowPredictor) -> None:
    for empty in ({"text": np.array([])}, pd.DataFrame({"text": []}), TEXTS[:0]):
        assert len(with_predictions(empty, predict)["label"]) == 0
        assert kinds(with_predictions(TEXTS, predict)) == [None, None]


def test_columns_that_are_not_read_may_hold_anything(predict: RowPredictor) -> None:
    alone = with_predictions(TEXTS, predict)["label"].to_pylist()
    frame = pd.DataFrame([["a film", 1, 2, object()], ["a cat", 3, 4, [1]]], columns=["text", "x", "x", "odd"])
    for _ in range(2):  # the first batch decides which columns are read
        made = with_predictions(frame, predict)
        assert made["label"].tolist() == alone and list(made.columns[:4]) == ["text", "x", "x", "odd"]


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (pa.table({"txt": ["a"]}), r"a batch has no column 'text', which the first one had; its columns: txt"),
        (pa.table({"text": [1, 2]}), r"a batch has int64 in the column 'text'; in the first one it was text"),
        (pa.table({"text": ["a"], "error": ["b"]}), r"a column 'error', and so has the output"),
        ({"text": np.array(["a"]), "score": np.zeros((1, 4))}, r"a column 'score', and so has the output"),
    ],
)
def test_a_later_batch_of_another_shape_is_refused(predict: RowPredictor, batch: Any, message: str) -> None:
    with_predictions(TEXTS, predict)
    with pytest.raises(UsageError, match=message):
        with_predictions(batch, predict)


def test_polars_series_of_all_kinds_of_text(null_model: Path) -> None:
    predict = Predictor(null_model, backend="null")
    expected = predict(pl.Series("text", ["a film", None])).to_list()
    assert predict(pl.Series("text", ["a film", None], dtype=pl.Categorical)).to_list() == expected
    assert predict(pl.Series("text", ["a film", None], dtype=pl.Enum(["a film"]))).to_list() == expected
    assert predict(pl.Series("text", [None])).to_list() == expected[1:]
    frame = pl.DataFrame({"a": ["a film", None] * 20, "b": ["a film", None] * 20})
    both = frame.select(pl.all().map_batches(predict, return_dtype=predict.dtype))  # in two threads
    assert both["a"].to_list() == both["b"].to_list() == expected * 20
