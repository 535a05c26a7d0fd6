"""Which columns are read, carried over and added; and the kinds of tables that can be given."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from packhorse.errors import UsageError
from tests.null.reference import predicted, predictions
from tests.null.runs import rows_of, run

TEXTS = ["good film", None, "naïve 漢字 🙂", ""]
COLUMNS: dict[str, list[Any]] = {"id": [3, 1, 2, 0], "text": TEXTS, "note": ["w", "x", None, "z"]}


def twice(rows: datasets.Dataset) -> datasets.Dataset:
    return datasets.concatenate_datasets([rows, rows])


TABLES: dict[str, Callable[[], Any]] = {
    "dict": lambda: COLUMNS,
    "table": lambda: pa.table(COLUMNS),
    "record_batch": lambda: pa.RecordBatch.from_pydict(COLUMNS),
    "pandas": lambda: pd.DataFrame(COLUMNS, index=[9, 8, 7, 6]),
    "pandas_categories": lambda: pd.DataFrame(COLUMNS).astype({"text": "category"}),
    "pandas_arrow": lambda: pd.DataFrame(COLUMNS).convert_dtypes(dtype_backend="pyarrow"),
    "polars": lambda: pl.DataFrame(COLUMNS),
    "polars_categories": lambda: pl.DataFrame(COLUMNS).with_columns(pl.col("text").cast(pl.Categorical)),
    "datasets": lambda: datasets.Dataset.from_dict(COLUMNS),
    "datasets_chosen": lambda: twice(datasets.Dataset.from_dict(COLUMNS)).select(range(4, 8)),
}  # fmt: skip


@pytest.mark.parametrize("kind", TABLES)
def test_a_table_of_any_kind(null_model: Path, tmp_path: Path, kind: str) -> None:
    run(null_model, TABLES[kind](), tmp_path, text_column="text")
    found = rows_of(tmp_path)
    assert predicted(found) == predictions(TEXTS)
    assert [(row["id"], row["text"]) for row in found] == list(zip(COLUMNS["id"], TEXTS, strict=True))
    assert list(found[0]) == ["id", "text", "note", "label", "score", "error"]


@pytest.mark.parametrize("kind", TABLES)
def test_a_table_that_is_made_again_is_the_same_input(null_model: Path, tmp_path: Path, kind: str) -> None:
    run(null_model, TABLES[kind](), tmp_path, text_column="text")
    assert run(null_model, TABLES[kind](), tmp_path, text_column="text").status == "already_finished"


@pytest.mark.parametrize("keep", [(), ("id",), ("note", "id"), ("text",)])
def test_only_the_columns_to_keep_are_carried_over_in_their_order(
    null_model: Path, tmp_path: Path, keep: tuple[str, ...]
) -> None:
    run(null_model, COLUMNS, tmp_path, text_column="text", keep=keep)
    assert list(rows_of(tmp_path)[0]) == [*keep, "label", "score", "error"]
    assert predicted(rows_of(tmp_path)) == predictions(TEXTS)


def test_a_prefix_stands_before_every_column_that_is_added(null_model: Path, tmp_path: Path) -> None:
    run(null_model, COLUMNS, tmp_path, text_column="text", output_prefix="my_", scores="all")
    assert list(rows_of(tmp_path)[0]) == ["id", "text", "note", "my_label", "my_score", "my_scores", "my_error"]


@pytest.mark.parametrize("name", ["label", "score", "error"])
def test_a_column_that_would_stand_twice_is_refused_with_two_ways_out(
    null_model: Path, tmp_path: Path, name: str
) -> None:
    rows = {"text": TEXTS, name: TEXTS, "id": TEXTS}
    with pytest.raises(UsageError) as caught:
        run(null_model, rows, tmp_path / "out", text_column="text")
    assert all(word in str(caught.value) for word in (repr(name), "--output-prefix", "--keep text,id"))
    assert not (tmp_path / "out").exists()
    run(null_model, rows, tmp_path / "prefixed", text_column="text", output_prefix="pred_")
    run(null_model, rows, tmp_path / "kept", text_column="text", keep=("text", "id"))
    assert list(rows_of(tmp_path / "prefixed")[0]) == [*rows, "pred_label", "pred_score", "pred_error"]
    assert predicted(rows_of(tmp_path / "kept")) == predictions(TEXTS)


@pytest.mark.parametrize(
    ("rows", "settings", "words"),
    [
        ({"a": ["x"], "b": ["y"]}, {}, ["a, b could be meant", "--text-column"]),
        ({"n": [1]}, {}, ["no column holds text", "n (int64)"]),
        ({"a": ["x"]}, {"text_column": "b"}, ["--text-column b", "the input has a"]),
        ({"a": ["x"]}, {"pair_column": "b"}, ["--pair-column b", "the input has a"]),
        ({"a": ["x"], "n": [1]}, {"text_column": "n"}, ["--text-column n", "int64, not text"]),
        ({"a": ["x"]}, {"keep": ("b",)}, ["--keep b", "the input has a"]),
        ({"a": ["x"]}, {"keep": ("a", "a")}, ["--keep", "a"]),
        ({"a": ["x"]}, {"shard_row": 3}, ["'shard_row'", "did you mean 'shard_rows'"]),
        ({"a": ["x"]}, {"shard_rows": 0}, ["--shard-rows 0"]),
        ({"a": ["x"]}, {"limit": -1}, ["--limit -1"]),
        ({"a": ["x"]}, {"max_error_rate": 1.5}, ["--max-error-rate 1.5"]),
        ({"a": ["x"]}, {"exact": True, "precision": "bf16"}, ["--exact", "bf16"]),
        ({"a": ["x"]}, {"batching": "fixed", "max_batch_tokens": 9}, ["--batch-size"]),
    ],
    ids=str,
)
def test_what_cannot_be_meant_is_refused_before_anything_is_written(
    null_model: Path, tmp_path: Path, rows: dict[str, Any], settings: dict[str, Any], words: list[str]
) -> None:
    with pytest.raises(UsageError) as caught:
        run(null_model, rows, tmp_path / "out", **settings)
    assert all(word in str(caught.value) for word in words)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("columns", [["only"], ["a", "text", "b"]])
def test_the_text_column_is_guessed_where_only_one_can_be_meant(
    null_model: Path, tmp_path: Path, columns: list[str]
) -> None:
    where = "only" if columns == ["only"] else "text"
    run(null_model, {name: TEXTS if name == where else ["x"] * 4 for name in columns} | {"n": range(4)}, tmp_path)
    assert predicted(rows_of(tmp_path)) == predictions(TEXTS)


def test_the_pair_column_is_not_guessed_as_the_text(null_model: Path, tmp_path: Path) -> None:
    run(null_model, {"text": TEXTS, "question": TEXTS}, tmp_path, pair_column="text")
    assert predicted(rows_of(tmp_path)) == predictions(TEXTS, TEXTS)


@pytest.mark.parametrize("name", ["in.csv", "in.jsonl", "in.tsv"])
def test_an_input_without_a_byte_is_said_to_be_empty(null_model: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / name).touch()
    for settings in ({}, {"text_column": "text"}):
        with pytest.raises(UsageError, match="the input is empty"):
            run(null_model, tmp_path / name, tmp_path / "out", **settings)


def test_what_a_csv_could_not_read_is_kept_beside_the_columns_to_keep(null_model: Path, tmp_path: Path) -> None:
    (tmp_path / "in.csv").write_text("id,text\n1,good\n2,bad,one too many\n")
    run(null_model, tmp_path / "in.csv", tmp_path / "out", keep=("id",))
    assert [row["_rescued_data"] for row in rows_of(tmp_path / "out")] == [None, "2,bad,one too many"]


def test_an_input_with_one_name_twice_is_refused(null_model: Path, tmp_path: Path) -> None:
    twice = pa.table([pa.array(["a"]), pa.array([1]), pa.array([2])], names=["text", "number", "number"])
    pq.write_table(twice, tmp_path / "in.parquet")
    for rows in (twice, tmp_path / "in.parquet"):
        with pytest.raises(UsageError, match="number"):
            run(null_model, rows, tmp_path / "out")


def test_an_output_of_an_unknown_format_is_refused(null_model: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"\.parquet"):
        run(null_model, COLUMNS, tmp_path / "out.parqet", text_column="text")


def test_a_column_of_another_runs_rescued_data_is_carried_only_when_kept(null_model: Path, tmp_path: Path) -> None:
    """In a table it is a column like any other; it is packhorse's own only where lines of JSON are read."""
    rows = {"text": ["good"], "a": [1], "_rescued_data": ["{}"]}
    run(null_model, rows, tmp_path / "some", text_column="text", keep=("a",))
    run(null_model, rows, tmp_path / "all", text_column="text")
    assert [name for name in rows_of(tmp_path / "some")[0] if name in rows] == ["a"]
    assert [name for name in rows_of(tmp_path / "all")[0] if name in rows] == list(rows)
