"""Predictor in a real Ray Data pipeline: what the command line gives for the same rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from packhorse.errors import UsageError
from packhorse.integrations.rows import RowPredictor
from tests.cluster.rows import NUM_ROWS, assert_same, of_run, rows

README = """
from packhorse.integrations.ray import Predictor
made = ds.map_batches(Predictor, fn_constructor_kwargs={"model": MODEL, "text_column": "text"}, num_cpus=1,
                      batch_format="pyarrow", batch_size=4096, compute=ray.data.ActorPoolStrategy(size=2))
"""


def in_blocks(ray: Any, **settings: Any) -> list[dict[str, Any]]:
    from packhorse.integrations.ray import Predictor

    given = {"batch_size": 16, "compute": ray.data.ActorPoolStrategy(size=1), "num_cpus": 1} | settings
    made = ray.data.from_arrow(rows()).repartition(4).map_batches(Predictor, **given)
    return sorted(made.take_all(), key=lambda row: row["id"])


def test_rows_come_back_in_order_with_those_in_error(ray: Any, null_model: Path, tmp_path: Path) -> None:
    namespace = {"ray": ray, "ds": ray.data.from_arrow(rows()), "MODEL": str(null_model)}
    code = README.replace('"text_column"', '"backend": "null", "text_column"')
    exec(code, namespace)  # the block of the README, with a model that needs no torch
    made: Any = namespace["made"]
    assert_same(made.take_all(), of_run(null_model, tmp_path / "out", backend="null"))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["classifier", "minilm"])
def test_a_model_gives_what_the_job_gives(ray: Any, kind: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    model: Path = request.getfixturevalue(kind)
    settings = {"model": str(model), "text_column": "text"}
    found = in_blocks(ray, fn_constructor_kwargs=settings, batch_format="pyarrow")
    assert_same(found, of_run(model, tmp_path / "out"))


@pytest.mark.parametrize("kind", ["numpy", "pandas"])
def test_batches_of_other_kinds(null_model: Path, tmp_path: Path, kind: str) -> None:
    """Batches as Ray hands them over in these formats."""
    from packhorse.integrations.batches import with_predictions

    expected = of_run(null_model, tmp_path / "out", backend="null")
    predict = RowPredictor(null_model, {"backend": "null", "text_column": "text"}, cores=1)
    table = rows()
    if kind == "pandas":
        pytest.importorskip("pandas")
        made = with_predictions(table.to_pandas(), predict)
        columns = {name: made[name].tolist() for name in made.columns}
    else:
        arrays = {"id": np.arange(NUM_ROWS), "text": np.array(table["text"].to_pylist(), object)}
        columns = {name: list(values) for name, values in with_predictions(arrays, predict).items()}
    assert list(columns) == ["id", "text", "label", "score", "error"]
    for i, row in enumerate(expected):
        assert columns["label"][i] == row["label"] and columns["error"][i] == row["error"]
        assert row["score"] is None or abs(columns["score"][i] - row["score"]) < 1e-6
        assert row["score"] is not None or np.isnan(columns["score"][i])


def test_texts_that_are_none_are_errors_of_their_rows(null_model: Path) -> None:
    from packhorse.integrations.batches import with_predictions

    predict = RowPredictor(null_model, {"backend": "null", "text_column": "text"})
    made = with_predictions({"text": np.array(["a film", 3, "half \ud83d", None], object)}, predict)
    assert [e and e["kind"] for e in made["error"]] == [None, "not_text", "lone_surrogate", "null_text"]


def test_generation_with_a_template(null_model: Path, tmp_path: Path) -> None:
    import packhorse

    settings: dict[str, Any] = {"backend": "null", "task": "text-generation", "template": "Sum {id}: {text}"}
    settings |= {"max_new_tokens": 4}
    packhorse.run(null_model, rows(), tmp_path / "out", **settings)
    import pyarrow.parquet as pq

    expected = pq.read_table(tmp_path / "out").select(["generated_text", "error"])
    made = RowPredictor(null_model, settings)(rows())
    assert made.select(["generated_text", "error"]).to_pylist() == expected.to_pylist()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"limit": 3}, "'limit' is a setting of jobs"),
        ({"tune": "full"}, "tune='full' decides by the rows of a job"),
        ({"no_such": 1}, "no_such"),
        ({"do_sample": True, "task": "text-generation"}, "give seed_column"),
    ],
)
def test_settings_that_a_pipeline_cannot_have(null_model: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        RowPredictor(null_model, {"backend": "null"} | settings)


def test_a_column_named_like_an_output_is_refused(null_model: Path) -> None:
    predict = RowPredictor(null_model, {"backend": "null", "text_column": "text"})
    with pytest.raises(UsageError, match="output_prefix"):
        predict(rows().append_column("label", rows()["id"]))
    prefixed = RowPredictor(null_model, {"backend": "null", "text_column": "text", "output_prefix": "p_"})
    assert prefixed(rows().append_column("label", rows()["id"])).column_names == ["p_label", "p_score", "p_error"]
