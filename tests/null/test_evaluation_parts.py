"""What of evaluations needs no model: judgments, words and pages."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from packhorse.errors import InputError, UsageError
from packhorse.evaluating.evaluation import Evaluation
from packhorse.evaluating.page import render
from packhorse.evaluating.qrels import read_qrels
from packhorse.evaluating.question_answering import normal, overlap
from packhorse.evaluating.ranking import of_query
from packhorse.evaluating.scores import of_matrix
from packhorse.evaluating.text import print_evaluation, progress
from tests.null.report_page import Page, value_at

EXPECTED = {"q1": {"d1": 2, "d 2": 0}, "q2": {"d1": 1}}


@pytest.mark.parametrize(
    "text",
    [
        "query-id\tcorpus-id\tscore\nq1\td1\t2\nq1\td 2\t0\nq2\td1\t1\n",
        "q1\td1\t2\n\nq1\td 2\t0\nq2\td1\t1",
        "q1\t0\td1\t2\r\nq1\t0\td 2\t0\r\nq2\tQ0\td1\t1.0\r\n",
        "\ufeffq1\td1\t2\nq1\td 2\t0\nq2\td1\t1\n",
    ],
    ids=["BEIR", "without a header", "TREC", "with a mark"],
)
def test_judgments_of_lines(tmp_path: Path, text: str) -> None:
    (tmp_path / "qrels.tsv").write_bytes(text.encode())
    assert read_qrels(str(tmp_path / "qrels.tsv")) == EXPECTED


def test_judgments_between_spaces_and_in_tables(tmp_path: Path) -> None:
    (tmp_path / "qrels").write_text("q1 0 d1 2\nq2 0 d1 1\n")
    assert read_qrels(str(tmp_path / "qrels")) == {"q1": {"d1": 2}, "q2": {"d1": 1}}
    table = {"query-id": ["q1", "q1", "q2"], "corpus-id": ["d1", "d 2", "d1"], "score": [2, 0, 1]}
    pq.write_table(pa.table(table), tmp_path / "qrels.parquet")
    assert read_qrels(str(tmp_path / "qrels.parquet")) == EXPECTED


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("q\td\t1\nq\td\t1\n", "line 2: document 'd' is judged twice for query 'q'"),
        ("q\td\t1\nq\te\tgood\n", "line 2: the relevance is 'good'; legal is a whole number"),
        ("q\td\t1\nq\te\n", "line 2: 2 fields; legal are three"),
        ("query\tdocument\tscore\n", "there is no judgment in it"),
        ("", "there is no judgment in it"),
    ],
)
def test_lines_that_are_no_judgments(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "qrels.tsv").write_text(text)
    with pytest.raises(InputError, match=message):
        read_qrels(str(tmp_path / "qrels.tsv"))


def test_tables_without_the_columns(tmp_path: Path) -> None:
    pq.write_table(pa.table({"query-id": ["q"], "document": ["d"]}), tmp_path / "qrels.parquet")
    with pytest.raises(UsageError, match=r"no column named corpus-id or corpus_id .*; there are query-id, document"):
        read_qrels(str(tmp_path / "qrels.parquet"))


def test_ranks_by_hand() -> None:
    """Two relevant documents of three, at ranks 2 and 4, one of them with gain 2."""
    found = of_query(np.array([7, 3, 8, 5, -1]), {3: 1, 5: 2, 8: -1}, [1, 2, -1, 1])
    ideal = 2 + 1 / np.log2(3) + 1 / 2
    assert found == pytest.approx({
        "ndcg@10": (1 / np.log2(3) + 2 / np.log2(5)) / ideal, "mrr@10": 1 / 2, "recall@10": 2 / 3,
        "recall@100": 2 / 3, "map@100": (1 / 2 + 2 / 4) / 3,
    })  # fmt: skip
    assert set(of_query(np.array([1, 2]), {1: 0}, [0]).values()) == {0.0}


@pytest.mark.parametrize(
    ("answer", "label", "f1"),
    [
        ("The Cat!", "cat", 1.0),
        ("a dog, and a cat", "dog cat", 0.8),
        ("", "", 1.0),
        ("", "cat", 0.0),
        ("the", "a", 1.0),  # nothing is left of either
        ("cat cat cat", "cat", 0.5),
        ("anthem", "them", 0.0),
    ],
)
def test_answers_as_squads_script_has_them(answer: str, label: str, f1: float) -> None:
    assert overlap(answer, label) == pytest.approx(f1)
    assert (normal(answer) == normal(label)) == (f1 == 1.0)


# -- words and pages


def _evaluation(num_labels: int, **values: Any) -> Evaluation:
    random = np.random.default_rng(0)
    matrix = np.diag(random.integers(50, 99, num_labels)) + random.integers(0, 3, (num_labels, num_labels))
    names = [f"<b>{i}</b> [red]" for i in range(num_labels)]
    metrics = {**of_matrix(matrix.astype(float), names), "calibration_error": None}
    plan = {
        "backend": "torch", "precision": "fp32", "attention": "packed", "batching": "packed", "max_length": 512,
        "notes": ["<i>a note</i>"],
    }  # fmt: skip
    told = {
        "model": "<m>", "input": "rows & more", "task": "text-classification", "measured": "labels", "metrics": metrics,
        "headline": ("accuracy", "f1_macro"), "rows": 9, "computed_rows": 9, "measured_rows": 6, "unlabelled_rows": 1,
        "error_rows": 2, "errors": {"null_text": 2}, "truncated_texts": 3, "seconds": 2.0, "setup_s": 1.0,
        "device": "cpu", "plan": plan,
    }  # fmt: skip
    return Evaluation(**told | values)


@pytest.mark.parametrize("num_labels", [1, 2, 12, 30, 31])
def test_every_figure_of_the_page_is_one_of_the_json(num_labels: int) -> None:
    import json

    evaluation = _evaluation(num_labels).to_dict()
    source = render(evaluation)
    page = Page(source)
    for figure in page.figures:
        assert json.loads(str(figure.attributes["data-value"])) == value_at(evaluation, str(figure.key))
    shown = {figure.key for figure in page.figures}
    assert {"/metrics/accuracy", "/metrics/labels/0/f1", "/error_rows", "/errors/null_text"} <= shown
    cells = [f for f in page.figures if f.tag == "rect"]
    assert len(cells) == (num_labels**2 if num_labels <= 30 else 0)
    assert "<b>0" not in source and "<i>a note" not in source and "<script" not in source
    assert all("http" not in str(v) for e in page.elements for k, v in e.attributes.items() if k in ("src", "href"))


def test_a_page_without_labels_or_errors() -> None:
    metrics = {"spearman": None, "pearson": 0.5, "similarity": "cosine"}
    page = Page(render(_evaluation(2, metrics=metrics, headline=("spearman", "pearson"), errors={}).to_dict()))
    assert next(f for f in page.figures if f.key == "/metrics/spearman").text == "none"
    assert not [e for e in page.elements if e.tag == "svg"]


def test_the_words_in_a_terminal(tmp_path: Path) -> None:
    from rich.console import Console

    stream = io.StringIO()
    found = _evaluation(3)
    print_evaluation(found, Console(file=stream, width=120, highlight=False))
    lines = stream.getvalue().splitlines()
    assert lines[1].split() == ["accuracy", f"{found.metrics['accuracy']:.4f}"]
    assert any("<b>1</b> [red]" in line and f"{found.metrics['labels'][1]['f1']:.4f}" in line for line in lines)
    assert "  6 of 9 rows measured, 1 without a label, 2 in error" in lines
    assert "  errors: 2 null_text" in lines
    found.save_json(tmp_path / "e.json")
    found.save_html(tmp_path / "e.html")
    assert (tmp_path / "e.html").read_text().startswith("<!doctype html>")


def test_progress_is_a_line_now_and_then() -> None:
    stream, now = io.StringIO(), [0.0]
    with progress(stream, lambda: now[0]) as on_rows:
        for second in range(25):
            now[0] = float(second)
            on_rows(second * 100.0, 2_000.0)
    assert stream.getvalue() == "1,000 of 2,000 rows, 10.0 s\n2,000 of 2,000 rows, 20.0 s\n"
