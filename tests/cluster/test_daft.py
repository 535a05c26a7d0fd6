"""A Daft column function and a Polars one: what the command line gives for the same rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.cluster.rows import assert_same, of_run, rows

README_DAFT = """
from packhorse.integrations.daft import predictor
predict = predictor(MODEL)
made = frame.with_column("made", predict(frame["text"]))
"""
README_POLARS = """
from packhorse.integrations.polars import Predictor
predict = Predictor(MODEL)
made = frame.with_columns(made=pl.col("text").map_batches(predict, return_dtype=predict.dtype)).unnest("made")
"""


def done(code: str, model: Path, **namespace: Any) -> Any:
    namespace |= {"MODEL": str(model)}
    exec(code, namespace)  # the block of the README
    return namespace["made"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["classifier", "minilm"])
def test_daft(tmp_path: Path, kind: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    daft = pytest.importorskip("daft", reason="daft is not installed: pip install daft")
    model: Path = request.getfixturevalue(kind)
    monkeypatch.setenv("DAFT_ANALYTICS_ENABLED", "0")
    made = done(README_DAFT, model, frame=daft.from_arrow(rows())).to_arrow().to_pylist()
    found = [{"id": row["id"], "text": row["text"], **row["made"]} for row in made]
    assert_same(found, of_run(model, tmp_path / "out"))


@pytest.mark.parametrize("kind", ["classifier", "minilm"])
@pytest.mark.parametrize("is_lazy", [False, True])
def test_polars(tmp_path: Path, kind: str, is_lazy: bool, request: pytest.FixtureRequest) -> None:
    pl = pytest.importorskip("polars", reason="polars is not installed")
    model: Path = request.getfixturevalue(kind)
    frame = pl.from_arrow(rows())
    made = done(README_POLARS, model, frame=frame.lazy() if is_lazy else frame, pl=pl)
    assert_same((made.collect() if is_lazy else made).to_dicts(), of_run(model, tmp_path / "out"))


def test_a_struct_of_columns_fills_a_template(null_model: Path) -> None:
    pl = pytest.importorskip("polars", reason="polars is not installed")
    from packhorse.integrations.polars import Predictor

    settings: dict[str, Any] = {"task": "text-generation", "max_new_tokens": 3, "template": "{id} of {text}"}
    predict = Predictor(null_model, backend="null", **settings)
    column = pl.struct("id", "text").map_batches(predict, return_dtype=predict.dtype)
    made = pl.from_arrow(rows()).select(made=column).unnest("made")
    assert made.height == rows().num_rows and made["generated_text"].null_count() == 5
