"""Text classification against plain transformers, row by row in fp32."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

import packhorse
from tests.cpu import reference
from tests.cpu.engine import load
from tests.models import save_classifier

TEXTS = reference.texts_of_all_lengths()
PAIRS = TEXTS[::-1]
TOLERANCE = 3e-5  # at this initializer_range, two orders of summing differ by 1.2e-5


def scores_of(table: pa.Table) -> np.ndarray:
    return np.array(table["scores"].to_pylist(), np.float32)


def predicted(folder: Path, texts: list[Any] = TEXTS, **settings: Any) -> np.ndarray:
    """[n, labels] scores of all labels."""
    with load(folder, scores="all", **settings) as engine:
        return scores_of(engine.predict(texts))


def assert_as_reference(table: pa.Table, expected: torch.Tensor) -> None:
    """label, score and scores of a table against [n, labels] probabilities."""
    wanted = expected.numpy()
    assert wanted.std(0).max() > 100 * TOLERANCE, "rows too alike to tell a mix-up"
    assert table["label"].to_pylist() == [f"LABEL_{i}" for i in wanted.argmax(1)]
    np.testing.assert_allclose(table["score"].to_numpy(), wanted.max(1), atol=TOLERANCE)
    np.testing.assert_allclose(scores_of(table), wanted, atol=TOLERANCE)
    assert table["error"].null_count == len(table)


@pytest.mark.parametrize("with_pairs", [False, True], ids=["single", "pair"])
@pytest.mark.parametrize("kind", ["bert", "roberta", "distilbert"])
def test_predict_and_run_equal_transformers_row_by_row(
    classifiers: dict[str, Path], kind: str, with_pairs: bool, tmp_path: Path
) -> None:
    folder, pairs = classifiers[kind], PAIRS if with_pairs else None
    expected = reference.logits(folder, TEXTS, pairs).softmax(1)
    lost = reference.tokens_lost(folder, TEXTS, pairs)
    assert sum(n > 0 for n in lost) > 3
    engine = load(folder, scores="all")

    assert_as_reference(engine.predict(TEXTS, pairs), expected)

    rows = {"text": TEXTS, "id": list(range(len(TEXTS)))} | ({"second": pairs} if pairs else {})
    columns = {"text_column": "text", "pair_column": "second" if pairs else None}
    report = engine.run(rows, str(tmp_path / "out/"), **columns)
    table = pq.read_table(tmp_path / "out")
    assert table["id"].to_pylist() == rows["id"]
    assert_as_reference(table, expected)
    assert report.counters.truncated_rows == sum(n > 0 for n in lost)
    assert report.counters.truncated_tokens == sum(lost)


def test_the_function_run_gives_what_the_engine_gives(bert: Path, tmp_path: Path) -> None:
    packhorse.run(bert, {"text": TEXTS}, tmp_path / "out", scores="all", devices="cpu")
    assert_as_reference(pq.read_table(tmp_path / "out"), reference.logits(bert, TEXTS).softmax(1))


def test_scores_all_names_its_labels_in_the_schema(bert: Path, tmp_path: Path) -> None:
    packhorse.run(bert, {"text": TEXTS}, tmp_path / "out", scores="all", devices="cpu")
    field = pq.read_schema(tmp_path / "out" / "part-000000.parquet").field("scores")
    assert field.type == pa.list_(pa.float32(), 3)
    assert json.loads(field.metadata[b"labels"]) == ["LABEL_0", "LABEL_1", "LABEL_2"]


@pytest.mark.parametrize(
    ("num_labels", "problem_type"),
    [
        (1, None),
        (1, "regression"),
        (1, "multi_label_classification"),
        (2, None),
        (3, "single_label_classification"),
        (3, "multi_label_classification"),
    ],
)
def test_scores_are_those_of_the_transformers_pipeline(
    tmp_path: Path, num_labels: int, problem_type: str | None
) -> None:
    from transformers import pipeline

    folder = save_classifier(tmp_path, "bert", num_labels, problem_type=problem_type, initializer_range=0.6)
    classify = pipeline("text-classification", model=str(folder), device="cpu")
    expected = []
    for text in TEXTS:
        by_label = {r["label"]: r["score"] for r in classify(text, top_k=None, truncation=True)}
        expected.append([by_label[f"LABEL_{i}"] for i in range(num_labels)])
    np.testing.assert_allclose(predicted(folder), expected, atol=TOLERANCE)


def test_multi_label_gives_every_label_from_one_half_on(tmp_path: Path) -> None:
    folder = save_classifier(tmp_path, "bert", 4, problem_type="multi_label_classification", initializer_range=0.6)
    expected = reference.logits(folder, TEXTS).sigmoid().numpy()
    assert {int(n) for n in (expected >= 0.5).sum(1)} >= {1, 2}
    table = load(folder, scores="all").predict([*TEXTS, None])
    labels = [[f"LABEL_{i}" for i in np.flatnonzero(row >= 0.5)] for row in expected]
    assert table["label"].to_pylist() == [*labels, None]
    np.testing.assert_allclose(table["score"].to_pylist()[:-1], expected.max(1), atol=TOLERANCE)
    assert table["score"].to_pylist()[-1] is None


def test_regression_has_a_score_and_no_label(tmp_path: Path) -> None:
    folder = save_classifier(tmp_path, "bert", 1, problem_type="regression", initializer_range=0.6)
    table = load(folder).predict(TEXTS)
    assert table["label"].null_count == len(TEXTS)
    np.testing.assert_allclose(table["score"].to_numpy(), reference.logits(folder, TEXTS)[:, 0], atol=TOLERANCE)


def test_roberta_takes_as_many_tokens_as_its_positions_behind_the_padding_index(tmp_path: Path) -> None:
    """66 positions begin at padding_idx + 1 = 2, so 64 tokens fit; the tokenizer knows of no limit."""
    folder = save_classifier(tmp_path, "roberta", pad_token_id=1, max_position_embeddings=66, initializer_range=0.6)
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"model_max_length": 10**30}))
    with load(folder, scores="all") as engine:
        assert engine.plan.max_length == 64
        assert_as_reference(engine.predict(TEXTS), reference.logits(folder, TEXTS, max_length=64).softmax(1))


@pytest.mark.parametrize("batch_size", [1, 5, 100])
def test_fixed_batches_give_the_same_values(bert: Path, batch_size: int) -> None:
    expected = reference.logits(bert, TEXTS).softmax(1)
    with load(bert, scores="all", batching="fixed", batch_size=batch_size) as engine:
        assert_as_reference(engine.predict(TEXTS), expected)


@pytest.mark.parametrize("max_length", [2, 3, 17])
def test_a_shorter_max_length_cuts_as_transformers_cuts(bert: Path, max_length: int) -> None:
    expected = reference.logits(bert, TEXTS, max_length=max_length).softmax(1)
    np.testing.assert_allclose(predicted(bert, max_length=max_length), expected, atol=TOLERANCE)


@pytest.mark.parametrize(("max_length", "pairs"), [(1, None), (2, PAIRS)], ids=["single", "pair"])
def test_no_row_is_shorter_than_its_special_tokens_and_that_is_said(
    bert: Path, max_length: int, pairs: list[str] | None
) -> None:
    with pytest.raises(packhorse.PackhorseError, match=r"max.length"):
        load(bert, max_length=max_length).predict(TEXTS, pairs)


def test_a_tokenizer_that_truncates_on_the_left_does_so_here(tmp_path: Path) -> None:
    folder = save_classifier(tmp_path, "bert", initializer_range=0.6)
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"truncation_side": "left"}))
    np.testing.assert_allclose(predicted(folder), reference.logits(folder, TEXTS).softmax(1), atol=TOLERANCE)


def test_rows_in_error_leave_their_neighbours_as_they_are(bert: Path) -> None:
    bad = {3: None, 8: 5, 20: "\ud800", 21: b"bytes", 33: ["a", "list"]}
    texts: list[Any] = [bad.get(i, text) for i, text in enumerate(TEXTS)]
    table = load(bert, scores="all").predict(texts)
    errors = {i: e["kind"] for i, e in enumerate(table["error"].to_pylist()) if e}
    assert errors == {3: "null_text", 8: "not_text", 20: "lone_surrogate", 21: "not_text", 33: "not_text"}
    assert [i for i, label in enumerate(table["label"].to_pylist()) if label is None] == sorted(bad)
    good = [i for i in range(len(TEXTS)) if i not in bad]
    expected = reference.logits(bert, TEXTS).softmax(1)
    assert_as_reference(table.take(good), expected[good])


def test_bytes_are_no_text_whatever_stands_beside_them(bert: Path) -> None:
    with load(bert) as engine:
        kinds = [e and e["kind"] for e in engine.predict([b"good film", "good film"])["error"].to_pylist()]
    assert kinds == ["not_text", None]


def test_no_rows_give_no_rows_with_the_same_columns(bert: Path) -> None:
    with load(bert, scores="all") as engine:
        empty = engine.predict([])
        assert len(empty) == 0
        assert empty.schema == engine.predict(["a"]).schema


def test_in_auto_precision_a_thousand_rows_keep_the_gates_tolerance(bert: Path) -> None:
    texts = reference.texts_of_all_lengths(1_100)
    with load(bert, scores="all") as engine:
        found = scores_of(engine.predict(texts))
        assert engine.plan.precision in ("fp32", "bf16", "fp16")
    differences = np.abs(found - reference.logits(bert, texts).softmax(1).numpy())
    assert np.quantile(differences, 0.95) <= 0.02
