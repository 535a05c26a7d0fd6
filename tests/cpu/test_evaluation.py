"""Evaluations of classifiers against scikit-learn and torchmetrics, on the scores that packhorse.load gives."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import scipy.stats
import torch
from sklearn import metrics

import packhorse
from packhorse.errors import InputError, UsageError
from tests.cpu.command import forked
from tests.cpu.evaluating import TEXTS, scores_of, write_lines
from tests.models import save_classifier

pytest.importorskip("torchmetrics")

NAMES = ["LABEL_0", "LABEL_1", "LABEL_2"]


@pytest.fixture(scope="module")
def scores(bert: Path) -> np.ndarray:
    return scores_of(bert, TEXTS)


def _labels(scores: np.ndarray, seed: int = 0) -> np.ndarray:
    """Those predicted, a third of them replaced."""
    random = np.random.default_rng(seed)
    labels = scores.argmax(1)
    wrong = random.random(len(labels)) < 0.35
    return np.where(wrong, random.integers(0, scores.shape[1], len(labels)), labels)


def _evaluated(model: Path, texts: Any, labels: Any, **settings: Any) -> packhorse.Evaluation:
    table = pa.table({"text": texts, "label": labels})
    return packhorse.evaluate(model, table, "label", **{"precision": "fp32", "tune": "off"} | settings)


@pytest.mark.parametrize("shard_rows", [None, 4])
def test_classification_is_scikit_learns(bert: Path, scores: np.ndarray, shard_rows: int | None) -> None:
    labels, predicted = _labels(scores), scores.argmax(1)
    found = _evaluated(bert, TEXTS, labels, shard_rows=shard_rows).metrics
    for average in ("micro", "macro", "weighted"):
        assert found[f"f1_{average}"] == pytest.approx(metrics.f1_score(labels, predicted, average=average))
    assert found["accuracy"] == pytest.approx(metrics.accuracy_score(labels, predicted))
    assert found["matthews_correlation"] == pytest.approx(metrics.matthews_corrcoef(labels, predicted))
    everything = metrics.precision_recall_fscore_support(labels, predicted, labels=range(3), zero_division=0)
    of_labels = [[row[name] for row in found["labels"]] for name in ("precision", "recall", "f1", "support")]
    np.testing.assert_allclose(of_labels, everything)
    assert found["confusion"]["matrix"] == metrics.confusion_matrix(labels, predicted, labels=range(3)).tolist()
    assert found["confusion"]["labels"] == [row["label"] for row in found["labels"]] == NAMES


def test_calibration_is_that_of_torchmetrics(bert: Path, scores: np.ndarray) -> None:
    from torchmetrics.functional.classification import multiclass_calibration_error

    labels = _labels(scores)
    expected = multiclass_calibration_error(torch.tensor(scores), torch.tensor(labels), 3, n_bins=15, norm="l1")
    assert _evaluated(bert, TEXTS, labels).metrics["calibration_error"] == pytest.approx(float(expected), abs=1e-6)


def test_sums_lose_no_row_of_many() -> None:
    """float32 has no whole numbers between 2**25 and 2**25 + 4."""
    from packhorse.evaluating.states import Confusion, widest

    state = Confusion(2, widest("cpu"))
    state.bins += 2**25
    state.matrix += 2**53 + 1
    state.update(torch.tensor([[0.25, 0.75]]), torch.tensor([1]), torch.tensor([True]))
    matrix, bins = state.compute()
    assert bins[11].tolist() == [2**25 + 1, 2**25 + 0.75, 2**25 + 1]
    assert matrix.tolist() == [[2**53 + 1, 2**53 + 1], [2**53 + 1, 2**53 + 2]]


@pytest.mark.parametrize("problem", [None, "regression"])
def test_no_rows_give_figures_of_nothing(tmp_path: Path, problem: str | None) -> None:
    folder = save_classifier(tmp_path / "m", num_labels=1 if problem else 3, problem_type=problem)
    found = _evaluated(folder, TEXTS, [0] * len(TEXTS), limit=0)
    assert (found.rows, found.measured_rows) == (0, 0)
    assert found.metrics[found.headline[0]] == (None if problem else 0.0)
    found.save_html(tmp_path / "page.html")


def test_a_label_that_occurs_nowhere_counts_in_no_mean(bert: Path, scores: np.ndarray) -> None:
    chosen = [i for i in range(len(TEXTS)) if scores[i].argmax() == scores[0].argmax()]
    labels = [int(scores[0].argmax())] * len(chosen)
    found = _evaluated(bert, [TEXTS[i] for i in chosen], labels).metrics
    assert found["f1_macro"] == found["accuracy"] == 1.0
    assert found["matthews_correlation"] == metrics.matthews_corrcoef(labels, labels) == 0.0


@pytest.mark.parametrize(
    "written",
    [
        lambda labels: [NAMES[i] for i in labels],
        lambda labels: [NAMES[i].lower() for i in labels],
        lambda labels: [str(i) for i in labels],
        lambda labels: labels.astype(np.float64),
        lambda labels: pa.array([NAMES[i] for i in labels]).dictionary_encode(),
    ],
    ids=["names", "small letters", "numbers as text", "floats", "dictionary"],
)
def test_labels_may_be_written_in_several_ways(bert: Path, scores: np.ndarray, written: Any) -> None:
    labels = _labels(scores)
    expected = _evaluated(bert, TEXTS, labels).metrics
    assert _evaluated(bert, TEXTS, written(labels)).metrics == expected


def test_rows_without_a_label_and_rows_in_error_are_counted_apart(bert: Path, scores: np.ndarray) -> None:
    labels = [*map(int, _labels(scores)), 0, None, None]
    texts = [*TEXTS, None, None, "good"]
    labels[2] = None
    found = _evaluated(bert, texts, labels)
    assert (found.rows, found.measured_rows, found.unlabelled_rows, found.error_rows) == (18, 14, 2, 2)
    assert found.errors == {"null_text": 2}
    kept = [i for i in range(len(TEXTS)) if i != 2]
    predicted = [int(scores[i].argmax()) for i in kept]
    assert found.metrics["accuracy"] == pytest.approx(np.mean(np.array(labels)[kept] == predicted))


@pytest.mark.parametrize(("label", "shown"), [("great", "'great'"), (3, "3"), (-1, "-1"), (0.5, "0.5")])
def test_an_unknown_label_names_row_and_legal_values(bert: Path, label: Any, shown: str) -> None:
    with pytest.raises(InputError, match="legal is LABEL_0, LABEL_1, LABEL_2, or their numbers 0 to 2") as caught:
        _evaluated(bert, ["a", "b"], pa.array([None, label]))
    assert f"row 1: column 'label' holds {shown}" in str(caught.value)


def test_values_that_are_no_numbers_are_errors_not_predictions(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = save_classifier(tmp_path / "m", initializer_range=0.6)
    weights = load_file(folder / "model.safetensors")
    ids = json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]
    weights["bert.embeddings.word_embeddings.weight"][ids["zip"]] = float("nan")
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    texts = ["a good film", "zip", "a zip film", "dull", "zip it"]
    found = _evaluated(folder, texts, [0, 1, 2, None, None], attention="eager")
    assert (found.measured_rows, found.unlabelled_rows, found.errors) == (1, 1, {"not_finite": 3})


# -- one output, several labels, numbers


def test_a_model_with_one_output_says_yes_from_a_half_on(tmp_path: Path) -> None:
    folder = save_classifier(tmp_path / "m", num_labels=1, initializer_range=0.6)
    with packhorse.load(folder, precision="fp32") as engine:
        yes = np.array(engine.predict(TEXTS)["score"].to_pylist()) >= 0.5
    labels = yes ^ (np.arange(len(TEXTS)) % 4 == 0)
    for written in (labels, labels.astype(int), ["LABEL_0" if label else "not LABEL_0" for label in labels]):
        found = _evaluated(folder, TEXTS, written).metrics
        assert found["confusion"]["matrix"] == metrics.confusion_matrix(labels, yes).tolist()
        assert found["f1_macro"] == pytest.approx(metrics.f1_score(labels, yes, average="macro"))


def test_names_that_are_numbers_or_truths_are_read_as_names(tmp_path: Path) -> None:
    stars = save_classifier(tmp_path / "stars", initializer_range=0.6, id2label={0: "1", 1: "2", 2: "3"})
    best = scores_of(stars, TEXTS).argmax(1)
    assert _evaluated(stars, TEXTS, best + 1).metrics["accuracy"] == 1.0
    with pytest.raises(InputError, match=r"holds 0; legal is 1, 2, 3$"):
        _evaluated(stars, TEXTS, best * 0)
    truths = save_classifier(tmp_path / "t", num_labels=2, initializer_range=0.6, id2label={0: "True", 1: "False"})
    best = scores_of(truths, TEXTS).argmax(1)
    assert _evaluated(truths, TEXTS, best == 0).metrics["accuracy"] == 1.0


def test_several_labels_a_row_are_scikit_learns(tmp_path: Path) -> None:
    folder = save_classifier(tmp_path / "m", initializer_range=0.6, problem_type="multi_label_classification")
    predicted = scores_of(folder, TEXTS) >= 0.5
    true = predicted ^ (np.random.default_rng(1).random(predicted.shape) < 0.3)
    names = [[NAMES[i] for i in np.flatnonzero(row)] for row in true]
    found = _evaluated(folder, TEXTS, names).metrics
    for average in ("micro", "macro", "weighted"):
        assert found[f"f1_{average}"] == pytest.approx(metrics.f1_score(true, predicted, average=average))
    assert found["accuracy"] == pytest.approx(metrics.accuracy_score(true, predicted))
    numbers = pa.array([np.flatnonzero(row).tolist() for row in true], pa.list_(pa.int64()))
    flags = [row.astype(float).tolist() for row in true]
    lines = [{"text": t, "label": label} for t, label in zip(TEXTS, flags, strict=True)]
    assert _evaluated(folder, TEXTS, numbers).metrics == _evaluated(folder, TEXTS, flags).metrics == found
    assert _evaluated(folder, TEXTS, [",".join(row) or "," for row in names]).metrics == found
    path = write_lines(tmp_path / "rows.jsonl", lines)
    assert packhorse.evaluate(folder, path, "label", precision="fp32", tune="off").metrics == found
    with pytest.raises(InputError, match="each label once, or a list of 3 times true or false"):
        _evaluated(folder, TEXTS[:1], [[0, 1, 0]])
    with pytest.raises(InputError, match="a list of 3 times true or false"):
        _evaluated(folder, TEXTS[:1], [[0.0, 1.0]])


def test_regression_is_scipys(tmp_path: Path) -> None:
    folder = save_classifier(tmp_path / "m", num_labels=1, initializer_range=0.6, problem_type="regression")
    with packhorse.load(folder, precision="fp32") as engine:
        values = np.array(engine.predict(TEXTS)["score"].to_pylist())
    labels = np.round(values + np.random.default_rng(2).normal(0, values.std(), len(values)), 1)
    labels[:4] = labels[0]
    found = _evaluated(folder, [*TEXTS, "a", None], [*labels, None, 1.0])
    assert found.metrics == pytest.approx({
        "spearman": scipy.stats.spearmanr(values, labels).statistic,
        "pearson": scipy.stats.pearsonr(values, labels).statistic,
        "mean_squared_error": metrics.mean_squared_error(labels, values),
        "mean_absolute_error": metrics.mean_absolute_error(labels, values),
    }, abs=1e-6)  # fmt: skip
    assert (found.measured_rows, found.unlabelled_rows, found.error_rows) == (len(TEXTS), 1, 1)
    assert _evaluated(folder, TEXTS, [0.1] * len(TEXTS)).metrics["spearman"] is None
    with pytest.raises(InputError, match="row 1: column 'label' holds 'x'; legal is a finite number"):
        _evaluated(folder, TEXTS[:2], ["1.5", "x"])


@pytest.mark.parametrize("combine", ["mean", "max", "first"])
def test_windows_become_one_prediction_as_in_a_run(bert: Path, combine: str) -> None:
    long = [" ".join(TEXTS), *TEXTS, " ".join(TEXTS[::-1]) * 2]
    settings: dict[str, Any] = {"long": "windows", "stride": 7, "combine": combine}
    scores = scores_of(bert, long, **settings)
    labels = _labels(scores)
    found = _evaluated(bert, long, labels, **settings).metrics
    assert found["accuracy"] == pytest.approx(np.mean(scores.argmax(1) == labels))
    bins = np.bincount((scores.max(1) * 15).astype(int), (scores.argmax(1) == labels) - scores.max(1), 16)
    assert found["calibration_error"] == pytest.approx(np.abs(bins).sum() / len(long), abs=1e-5)


def test_another_backend_gives_the_same(bert: Path, scores: np.ndarray) -> None:
    pytest.importorskip("openvino")
    labels = _labels(scores)
    ours = _evaluated(bert, TEXTS, labels).metrics
    theirs = _evaluated(bert, TEXTS, labels, backend="openvino").metrics
    assert theirs["confusion"] == ours["confusion"]
    assert theirs["calibration_error"] == pytest.approx(ours["calibration_error"], abs=1e-3)


# -- usage


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"label_column": None}, "which column has the labels"),
        ({"label_column": "no"}, "--label-column no: no such column; the input has text, label"),
        ({"label_column": "text", "text_column": "text"}, "is a column of the texts too"),
        ({"function_to_apply": "none"}, "need probabilities"),
        ({"devices": "cpu:2"}, "--devices cpu:2: an evaluation runs on one device"),
        ({"keep": ("text",)}, "takes no setting keep"),
        ({"long": "windows", "combine": "all"}, "--combine all"),
        ({"queries": "q.jsonl"}, "--queries without --qrels"),
        ({"query_prompt_name": "query"}, "belongs to --queries"),
        ({"task": "multi-vector-embedding"}, "multi-vector-embedding is not measured"),
    ],
    ids=lambda x: "" if isinstance(x, str) else next(iter(x)),
)
def test_what_cannot_be_evaluated_is_said(bert: Path, settings: dict[str, Any], message: str) -> None:
    table = pa.table({"text": TEXTS[:2], "label": [0, 1]})
    with pytest.raises(UsageError, match=message):
        packhorse.evaluate(bert, table, **{"label_column": "label", "tune": "off"} | settings)


def test_the_command(bert: Path, scores: np.ndarray, tmp_path: Path) -> None:
    labels = _labels(scores)
    pq.write_table(pa.table({"text": TEXTS, "label": labels, "other": TEXTS}), tmp_path / "rows.parquet")
    files = ("--json", tmp_path / "e.json", "--html", tmp_path / "e.html")
    done = forked(
        "eval", bert, tmp_path / "rows.parquet", "--label-column", "label", "--text-column", "text", "--tune", "off",
        "--precision", "fp32", *files,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "e.json").read_text())
    accuracy = float(np.mean(scores.argmax(1) == labels))
    assert found["metrics"]["accuracy"] == pytest.approx(accuracy)
    assert f"{accuracy:.4f}" in done.stdout.splitlines()[1]
    assert f"{len(TEXTS)} of {len(TEXTS)} rows measured, 0 without a label, 0 in error" in done.stdout
    assert (tmp_path / "e.html").read_text().startswith("<!doctype html>")
    wrong = forked("eval", bert, tmp_path / "rows.parquet", "--label-column", "no")
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert "--label-column no: no such column" in wrong.stderr
