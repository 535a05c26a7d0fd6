"""Zero-shot classification against transformers' own pipeline, a text at a time."""

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
from packhorse.errors import UsageError
from tests.cpu import reference
from tests.cpu.command import forked
from tests.cpu.engine import load
from tests.models import save_classifier

TASK = "zero-shot-classification"
LABELS = ["a good film", "Boring", "漢字", "the end, or not", "very long " * 8]
TEXTS = [text for text in reference.texts_of_all_lengths(24) if text] + ["العربية", "e\u0301 🙂🙂"]
TOLERANCE = 1e-4


def save_nli(
    folder: Path, kind: str = "bert", names: tuple[str, ...] = ("CONTRADICTION", "neutral", "Entailment")
) -> Path:
    """A sequence classifier whose outputs are called so."""
    ids = dict(enumerate(names))
    made = {"id2label": ids, "label2id": {name: i for i, name in ids.items()}}
    return save_classifier(folder, kind, len(names), **made)


@pytest.fixture(scope="module")
def nli(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_nli(tmp_path_factory.mktemp("nli") / "bert")


def expected(folder: Path, texts: list[str], labels: list[Any], **call: Any) -> list[dict[str, Any]]:
    """By the pipeline. labels: of each text."""
    from transformers import pipeline

    pipe = pipeline(TASK, model=str(folder), device="cpu")
    return [pipe(text, candidate_labels=mine, **call) for text, mine in zip(texts, labels, strict=True)]


def assert_as_pipeline(table: pa.Table, wanted: list[dict[str, Any]]) -> None:
    assert table["error"].null_count == len(table)
    assert table["labels"].to_pylist() == [row["labels"] for row in wanted]
    for scores, row in zip(table["scores"].to_pylist(), wanted, strict=True):
        np.testing.assert_allclose(scores, row["scores"], atol=TOLERANCE)
    assert np.ptp([row["scores"][0] for row in wanted]) > 100 * TOLERANCE, "rows too alike to tell a mix-up"


@pytest.mark.parametrize(
    ("names", "labels", "settings"),
    [
        (("CONTRADICTION", "neutral", "Entailment"), LABELS, {}),
        (("CONTRADICTION", "neutral", "Entailment"), LABELS, {"multi_label": True}),
        (("CONTRADICTION", "neutral", "Entailment"), LABELS[:1], {}),
        (("entailment", "not_entailment"), LABELS[:3], {"hypothesis_template": "What, {0}?", "multi_label": True}),
    ],
    ids=["single", "multi", "one label", "entailment first"],
)
def test_scores_are_those_of_the_pipeline(
    tmp_path: Path, names: tuple[str, ...], labels: list[str], settings: dict[str, Any]
) -> None:
    folder = save_nli(tmp_path, names=names)
    with load(folder, task=TASK, labels=labels, **settings) as engine:
        assert_as_pipeline(engine.predict(TEXTS), expected(folder, TEXTS, [labels] * len(TEXTS), **settings))
        assert engine.plan.attention == "packed"


@pytest.mark.parametrize("kind", ["distilbert", "roberta"])
def test_padded_models_without_token_types_give_the_same(tmp_path: Path, kind: str) -> None:
    folder = save_nli(tmp_path, kind)
    with load(folder, task=TASK, labels=LABELS, batching="padded", attention="sdpa") as engine:
        assert_as_pipeline(engine.predict(TEXTS), expected(folder, TEXTS, [LABELS] * len(TEXTS)))


def test_each_row_with_labels_of_its_own_in_every_entrance(nli: Path, tmp_path: Path) -> None:
    labels = [LABELS[i % 4 : i % 4 + 1 + i % 3] or LABELS[:2] for i in range(len(TEXTS))]
    wanted = expected(nli, TEXTS, labels)
    with load(nli, task=TASK) as engine:
        assert_as_pipeline(engine.predict(TEXTS, labels), wanted)
        rows = pa.table({"text": TEXTS, "tags": labels})
        report = engine.run(rows, str(tmp_path / "out/"), labels_column="tags", shard_rows=7)
    table = pq.read_table(tmp_path / "out")
    assert table["tags"].to_pylist() == labels
    assert_as_pipeline(table, wanted)
    assert report.counters.rows == len(TEXTS)


def test_labels_in_text_and_in_lists_of_lines(nli: Path, tmp_path: Path) -> None:
    """From JSON lines: a text with commas and spaces, by the command; and a list."""
    given = {"by_comma": " Boring,a good film ,, x", "lists": ["Boring", "a good film", "x"]}
    wanted = expected(nli, TEXTS[:6], [given["by_comma"]] * 6)
    lines = [json.dumps({"text": text, **given}) for text in TEXTS[:6]]
    (tmp_path / "in.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    one, other = tmp_path / "one.parquet", tmp_path / "other.parquet"
    done = forked("run", nli, tmp_path / "in.jsonl", "-o", one, "--task", TASK, "--labels-column", "by_comma",
                  "--text-column", "text", "--devices", "cpu", "--quiet")  # fmt: skip
    assert done.returncode == 0, done.stderr
    packhorse.run(
        nli, tmp_path / "in.jsonl", other, task=TASK, labels_column="lists", text_column="text", devices="cpu"
    )
    for path in (one, other):
        assert_as_pipeline(pq.read_table(path), wanted)


def test_an_empty_text_is_a_premise_without_tokens(nli: Path) -> None:
    """The pipeline refuses it; the model does not."""
    hypotheses = [f"This example is {label}." for label in LABELS[:3]]
    logits = reference.logits(nli, [""] * 3, hypotheses)[:, 2].softmax(0)
    with load(nli, task=TASK, labels=LABELS[:3]) as engine:
        row = engine.predict([""]).to_pylist()[0]
    order = torch.argsort(logits, descending=True)
    assert row["labels"] == [LABELS[i] for i in order]
    np.testing.assert_allclose(row["scores"], logits[order], atol=TOLERANCE)


def test_rows_that_cannot_be_done_are_errors_and_leave_the_others(nli: Path) -> None:
    texts = ["good", None, 7, "bad", "the end", "dull", "\ud800", "good"]
    labels = [["x", "y"], ["x"], ["x"], [], None, ["x", 3], ["x"], ["y", "x"]]
    with load(nli, task=TASK) as engine:
        table = engine.predict(texts, labels)
        alone = engine.predict(["good"], [["x", "y"]])
    kinds = [error and error["kind"] for error in table["error"].to_pylist()]
    assert kinds == [
        None, "null_text", "not_text", "no_labels", "no_labels", "not_text", "lone_surrogate", None
    ]  # fmt: skip
    assert [labels is None for labels in table["labels"].to_pylist()] == [kind is not None for kind in kinds]
    assert table["labels"][0] == alone["labels"][0] == table["labels"][7]
    np.testing.assert_allclose(table["scores"][7].as_py(), alone["scores"][0].as_py(), atol=1e-6)


def test_long_error_refuses_what_would_be_cut(nli: Path) -> None:
    with load(nli, task=TASK, labels=LABELS, long="error") as engine:
        table = engine.predict(["good", "very boring " * 60])
    assert [error and error["kind"] for error in table["error"].to_pylist()] == [None, "text_too_long"]


def test_pairs_of_equal_tokens_are_computed_once(nli: Path, tmp_path: Path) -> None:
    rows = {"text": ["good film", "good film", "bad"]}
    settings = {"task": TASK, "labels": ["a", "b"], "devices": "cpu"}
    report = packhorse.run(nli, rows, tmp_path / "out", **settings)
    assert (report.counters.rows, report.counters.duplicate_rows) == (3, 1)  # of 6 pairs two are computed for others
    first, second, _ = pq.read_table(tmp_path / "out")["scores"].to_pylist()
    assert first == second


def test_a_model_without_entailment_is_refused(bert: Path) -> None:
    with pytest.raises(UsageError, match="LABEL_0, LABEL_1, LABEL_2, and none begins with 'entail'"):
        load(bert, task=TASK, labels=["x"])


@pytest.mark.parametrize("template", ["no place", "{} and {}", "{name}", "{"])
def test_a_template_without_one_place_is_refused(nli: Path, template: str) -> None:
    with pytest.raises(UsageError, match="--hypothesis-template"):
        load(nli, task=TASK, labels=["x"], hypothesis_template=template)


def test_labels_have_to_come_from_somewhere(nli: Path, tmp_path: Path) -> None:
    with load(nli, task=TASK) as engine, pytest.raises(UsageError, match="which labels"):
        engine.predict(["good"])
    with pytest.raises(UsageError, match="--labels a,b,c, or --labels-column NAME"):
        packhorse.run(nli, {"text": ["good"]}, tmp_path / "out", task=TASK, devices="cpu")
