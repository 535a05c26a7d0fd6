"""Retrieval against a full matrix of scores in numpy and trec_eval's formulas, written out here."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

import packhorse
from packhorse.errors import InputError, UsageError
from tests.cpu.command import forked
from tests.cpu.evaluating import with_prompts, write_lines
from tests.models import WORDS

pytest.importorskip("torchmetrics")

AS_IT_IS: dict[str, Any] = {"precision": "fp32", "tune": "off", "task": "feature-extraction"}
Relevances = dict[str, dict[str, int]]


def _made(seed: int = 0) -> tuple[dict[str, str], dict[str, str], Relevances]:
    """150 documents, some of them equal, 8 queries and judgments; q6 has none that is relevant, q7 none at all."""
    random = np.random.default_rng(seed)

    def text() -> str:
        return " ".join(random.choice(WORDS, random.integers(2, 9)))

    documents = {f"d{i}": text() for i in range(150)}
    documents |= {f"d{i}": documents[f"d{i - 10}"] for i in range(10, 20)}
    queries = {f"q{i}": text() for i in range(8)}
    judged: Relevances = {
        q: {f"d{d}": int(random.integers(0, 4)) for d in random.choice(150, 30, replace=False)}
        for q in list(queries)[:6]
    }
    judged["q0"]["nowhere"] = 2
    judged["q6"] = {"d1": 0}
    judged["unknown"] = {"d1": 1}
    return documents, queries, judged


def _figures(
    vectors: np.ndarray, of_queries: np.ndarray, names: list[str], judged: list[dict[str, int]]
) -> dict[str, float]:
    """By the definitions, on all scores; equal ones, but for rounding, in the corpus' order."""
    found: dict[str, list[float]] = {name: [] for name in ("ndcg@10", "mrr@10", "recall@10", "recall@100", "map@100")}
    for query, gains in zip(of_queries, judged, strict=True):
        scores = np.round(vectors.astype(np.float64) @ query, 6)
        order = [names[i] for i in sorted(range(len(names)), key=lambda i: (-scores[i], i))]
        ranked = [gains.get(name, 0) for name in order]
        relevant = sum(gain > 0 for gain in gains.values())
        best = sorted(gains.values(), reverse=True)
        dcg, ideal = (sum(g / math.log2(i + 2) for i, g in enumerate(r[:10])) for r in (ranked, best))
        found["ndcg@10"].append(dcg / ideal if ideal else 0)
        found["mrr@10"].append(next((1 / (i + 1) for i, g in enumerate(ranked[:10]) if g > 0), 0))
        for k in (10, 100):
            found[f"recall@{k}"].append(sum(g > 0 for g in ranked[:k]) / max(relevant, 1))
        hits = [i for i, g in enumerate(ranked[:100]) if g > 0]
        found["map@100"].append(sum((n + 1) / (i + 1) for n, i in enumerate(hits)) / max(relevant, 1))
    return {name: float(np.mean(values)) for name, values in found.items()}


def _unit(vectors: np.ndarray) -> np.ndarray:
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True))


def _qrels(
    path: Path, judged: Relevances, line: str = "{q}\t{d}\t{g}\n", head: str = "query-id\tcorpus-id\tscore\n"
) -> Path:
    lines = [line.format(q=q, d=d, g=g) for q, of_query in judged.items() for d, g in of_query.items()]
    path.write_text(head + "".join(lines))
    return path


def _files(folder: Path, documents: dict[str, str], queries: dict[str, str]) -> tuple[Path, Path]:
    corpus = write_lines(folder / "corpus.jsonl", [{"_id": i, "text": t} for i, t in documents.items()])
    return corpus, write_lines(folder / "queries.jsonl", [{"_id": i, "text": t} for i, t in queries.items()])


@pytest.mark.parametrize("shard_rows", [None, 40])
def test_retrieval_is_that_of_a_full_matrix(
    tmp_path: Path, encoder: Path, monkeypatch: pytest.MonkeyPatch, shard_rows: int | None
) -> None:
    monkeypatch.setattr("packhorse.evaluating.nearest.QUERIES_AT_ONCE", 3)
    monkeypatch.setattr("packhorse.evaluating.nearest.SCORES_AT_ONCE", 3 * 17)
    documents, queries, judged = _made()
    corpus, asked = _files(tmp_path, documents, queries)
    with packhorse.load(encoder, task="feature-extraction", precision="fp32") as engine:
        vectors, of_queries = (_unit(engine.embed(list(texts.values()))) for texts in (documents, queries))
    of_judged = [judged[q] for q in queries if q in judged]
    expected = _figures(vectors, of_queries[:7], list(documents), of_judged)
    qrels = _qrels(tmp_path / "qrels.tsv", judged)
    found = packhorse.evaluate(encoder, corpus, queries=asked, qrels=qrels, shard_rows=shard_rows, **AS_IT_IS)
    assert {name: found.metrics[name] for name in expected} == pytest.approx(expected, abs=1e-9)
    assert (found.rows, found.measured_rows, found.unlabelled_rows, found.computed_rows) == (8, 7, 1, 158)
    assert found.metrics["judged_documents_not_in_corpus"] == 1
    assert found.metrics["judged_queries_not_in_queries"] == 1


def test_a_title_stands_before_the_text_and_null_texts_are_never_found(tmp_path: Path, encoder: Path) -> None:
    rows = [
        {"id": 1, "title": "good", "text": "film"}, {"id": 2, "title": None, "text": "bad end"},
        {"id": 3, "title": None, "text": None}, {"id": 4, "title": "very long", "text": None},
    ]  # fmt: skip
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "corpus.parquet")
    queries = {"a": "good film", "b": "very long", "c": None}
    table = pa.table({"id": list(queries), "query": list(queries.values())})
    qrels = _qrels(tmp_path / "qrels.txt", {"a": {"1": 1}, "b": {"4": 1, "3": 1}, "c": {"2": 1}}, "{q} 0 {d} {g}\n", "")
    found = packhorse.evaluate(encoder, tmp_path / "corpus.parquet", queries=table, qrels=qrels, **AS_IT_IS)
    assert found.metrics["mrr@10"] == 1.0  # equal texts are nearest
    assert found.metrics["recall@100"] == 0.75
    assert found.metrics["document_errors"] == {"null_text": 1}
    assert (found.measured_rows, found.errors) == (2, {"null_text": 1})


def test_queries_may_have_their_prompt_and_the_model_says_how_to_compare(tmp_path: Path, encoder: Path) -> None:
    folder = with_prompts(tmp_path / "m", encoder)
    settings = folder / "config_sentence_transformers.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"similarity_fn_name": "dot"}))
    documents, queries, judged = _made(1)
    corpus, asked = _files(tmp_path, documents, queries)
    with packhorse.load(folder, precision="fp32") as engine:
        vectors = engine.embed(list(documents.values()))
    with packhorse.load(folder, precision="fp32", prompt_name="query") as engine:
        of_queries = engine.embed(list(queries.values()))
    expected = _figures(vectors, of_queries[:7], list(documents), [judged[q] for q in queries if q in judged])
    qrels = _qrels(tmp_path / "qrels.tsv", judged)
    found = packhorse.evaluate(folder, corpus, queries=asked, qrels=qrels, query_prompt_name="query", **AS_IT_IS)
    assert found.metrics["similarity"] == "dot"
    assert {name: found.metrics[name] for name in expected} == pytest.approx(expected, abs=1e-9)
    settings.write_text(json.dumps({"similarity_fn_name": "euclidean"}))
    with pytest.raises(UsageError, match="compares by euclidean"):
        packhorse.evaluate(folder, corpus, queries=asked, qrels=qrels, **AS_IT_IS)


def test_keys_order_scores_and_then_documents() -> None:
    from packhorse.evaluating.nearest import sortable

    scores = np.array([0.5, -0.5, 0.0, -0.0, 1e-30, -1e-30, 3e38, -3e38, 0.5, -0.5], np.float32)
    keys = sortable(torch.tensor(scores)[None], torch.arange(len(scores)))[0].tolist()
    expected = sorted(range(len(scores)), key=lambda i: (-scores[i], i))
    assert sorted(range(len(scores)), key=lambda i: -keys[i]) == expected


def test_a_model_of_another_task_is_refused(bert: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="measured with embeddings, and this model does text-classification"):
        packhorse.evaluate(bert, pa.table({"id": ["a"], "text": ["a"]}), queries={}, qrels="x.tsv")


def test_the_command(tmp_path: Path, encoder: Path) -> None:
    documents, queries, judged = _made()
    corpus, asked = _files(tmp_path, documents, queries)
    told = ("eval", encoder, corpus, "--task", "feature-extraction", "--tune", "off", "--queries", asked, "--qrels")
    done = forked(*told, _qrels(tmp_path / "qrels.tsv", judged))
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[1].split()[0] == "ndcg@10"
    assert "7 of 8 queries measured, 1 not judged, 0 in error" in done.stdout


def test_judgments_of_other_queries(tmp_path: Path, encoder: Path) -> None:
    rows = pa.table({"id": ["a"], "text": ["x"]})
    with pytest.raises(InputError, match="none of its judgments is of a query and a document that are here"):
        qrels = _qrels(tmp_path / "other.tsv", {"x": {"y": 1}})
        packhorse.evaluate(encoder, rows, queries=rows, qrels=qrels, **AS_IT_IS)


@pytest.mark.parametrize(
    ("corpus", "error", "message"),
    [
        ({"id": ["a", "a"], "text": ["x", "y"]}, InputError, "the corpus: the id 'a' stands there more than once"),
        ({"id": ["a", None], "text": ["x", "y"]}, InputError, "the corpus: a row has no id"),
        ({"name": ["a"], "text": ["x"]}, UsageError, "the corpus: no column _id or id; there are name, text"),
    ],
)
def test_ids_that_are_none(tmp_path: Path, encoder: Path, corpus: Any, error: type[Exception], message: str) -> None:
    qrels = _qrels(tmp_path / "qrels.tsv", {"q": {"a": 1}})
    with pytest.raises(error, match=message):
        queries = {"id": ["q"], "text": ["x"]}
        packhorse.evaluate(encoder, pa.table(corpus), queries=pa.table(queries), qrels=qrels, **AS_IT_IS)
