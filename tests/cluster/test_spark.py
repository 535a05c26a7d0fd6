"""predict_fn and predict_partitions in a real Spark session: what the command line gives for the same rows."""

from __future__ import annotations

import math
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from packhorse.errors import UsageError
from tests.cluster.conftest import ONE_THREAD
from tests.cluster.rows import assert_same, is_near, of_run, rows

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        shutil.which("java") is None, reason="Spark needs Java: apt-get install openjdk-17-jre-headless"
    ),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]

README = """
from packhorse.integrations.spark import predict_fn, return_type
predict = predict_batch_udf(predict_fn(MODEL), return_type=return_type(MODEL), batch_size=4096)
made = frame.withColumn("made", predict("text")).select("*", "made.*")
"""
README_PARTITIONS = """
from packhorse.integrations.spark import output_schema, predict_partitions
predict = predict_partitions(MODEL, text_column="text")
made = frame.mapInArrow(predict, schema=output_schema(frame, MODEL))
"""


@pytest.fixture(scope="module")
def frame() -> Iterator[Any]:
    pyspark = pytest.importorskip("pyspark", reason="pyspark is not installed: pip install 'packhorse[spark]'")
    here = str(Path(__file__).parents[2])
    with pytest.MonkeyPatch.context() as patch:
        for name, value in ONE_THREAD.items():
            patch.setenv(name, value)
        patch.setenv("PYSPARK_PYTHON", sys.executable)
        patch.setenv("PYTHONPATH", os.pathsep.join([here, os.environ.get("PYTHONPATH", "")]))
        builder = pyspark.sql.SparkSession.builder.master("local[2]").config("spark.ui.enabled", "false")
        for key in ("spark.driver.host", "spark.driver.bindAddress"):
            builder = builder.config(key, "127.0.0.1")
        session = builder.config("spark.driver.memory", "512m").getOrCreate()
        session.sparkContext.setLogLevel("OFF")
        made = session.createDataFrame(rows().to_pylist(), "id long, text string").repartition(2)
        yield made
        session.stop()


def done(code: str, frame: Any, model: Path) -> list[Any]:
    from pyspark.ml.functions import predict_batch_udf

    namespace = {"frame": frame, "MODEL": str(model), "predict_batch_udf": predict_batch_udf}
    exec(code, namespace)  # the block of the README
    made: Any = namespace["made"]
    return list(made.orderBy("id").collect())


@pytest.mark.parametrize("kind", ["classifier", "minilm"])
def test_predict_batch_udf(frame: Any, tmp_path: Path, kind: str, request: pytest.FixtureRequest) -> None:
    model: Path = request.getfixturevalue(kind)
    found, expected = done(README, frame, model), of_run(model, tmp_path / "out")
    assert len(found) == len(expected)
    for row, theirs in zip(found, expected, strict=True):
        error = theirs["error"]
        assert (row.id, row.text) == (theirs["id"], theirs["text"])
        assert row.error_kind == (error and error["kind"]) and row.error_message == (error and error["message"])
        if kind == "classifier":
            assert row.label == theirs["label"] and is_near(row.score, theirs["score"])
        elif error is None:
            assert is_near(row.embedding, theirs["embedding"])
        else:
            assert len(row.embedding) == 384 and all(map(math.isnan, row.embedding))


@pytest.mark.parametrize("kind", ["classifier", "minilm"])
def test_map_in_arrow(frame: Any, tmp_path: Path, kind: str, request: pytest.FixtureRequest) -> None:
    model: Path = request.getfixturevalue(kind)
    found = [row.asDict(recursive=True) for row in done(README_PARTITIONS, frame, model)]
    assert_same(found, of_run(model, tmp_path / "out"))


def test_lists_of_labels_are_refused_where_the_udf_has_none(tmp_path: Path) -> None:
    from packhorse.integrations.spark import return_type
    from tests.models import save_classifier

    folder = save_classifier(tmp_path, problem_type="multi_label_classification")
    with pytest.raises(UsageError, match="predict_partitions"):
        return_type(folder)
