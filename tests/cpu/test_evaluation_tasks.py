"""Evaluations of answers, texts and pairs against references of their own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import scipy.stats
import torch

import packhorse
from packhorse.errors import InputError, UsageError
from tests.cpu.answering import save_bert as save_answerer
from tests.cpu.evaluating import TEXTS, save_language_model, with_prompts, write_lines
from tests.models import save_classifier

pytest.importorskip("torchmetrics")

AS_IT_IS: dict[str, Any] = {"precision": "fp32", "tune": "off"}


# -- answers


def test_answers_are_the_runs_by_squads_measure(tmp_path: Path) -> None:
    folder = save_answerer(tmp_path / "m")
    questions = ["what is it", "who made the film", "how long", "is it good", "what"]
    contexts = ["a good film, made in time", "the dog made it. " * 20, "two hours", "it is not bad at all", "zip"]
    with packhorse.load(folder, precision="fp32") as engine:
        answers = engine.predict(questions, contexts)["answer"].to_pylist()
    labels = [
        {"text": [f"The {answers[0].upper()}!", "x"]}, {"text": ["brave " + answers[1]]}, {"text": []},
        {"text": ["", answers[3]]}, None,
    ]  # fmt: skip
    lines = [
        {"question": q, "context": c, "answers": label}
        for q, c, label in zip(questions, contexts, labels, strict=True)
    ]  # fmt: skip
    found = packhorse.evaluate(folder, write_lines(tmp_path / "rows.jsonl", lines), "answers", **AS_IT_IS)
    num_words = len([w for w in answers[1].lower().split() if w not in ("a", "an", "the")])
    f1 = 2 * num_words / (2 * num_words + 1)
    assert (found.measured_rows, found.unlabelled_rows) == (4, 1)
    assert found.metrics["exact_match"] == pytest.approx(2 / 4)
    assert found.metrics["f1"] == pytest.approx((2 + f1) / 4)
    assert found.metrics["unanswerable"] == {"rows": 1, "exact_match": 0.0, "f1": 0.0}
    assert found.metrics["answerable"]["f1"] == pytest.approx((2 + f1) / 3)


def test_answers_of_a_wrong_kind(tmp_path: Path) -> None:
    folder = save_answerer(tmp_path / "m")
    table = pa.table({"question": ["a"], "context": ["b"], "answers": [3]})
    with pytest.raises(InputError, match="row 0: column 'answers' holds 3; legal are a text, a list of texts"):
        packhorse.evaluate(folder, table, "answers", **AS_IT_IS)


# -- texts


@pytest.mark.parametrize("kind", ["causal", "masked"])
def test_perplexity_is_that_of_the_runs_tokens(tmp_path: Path, kind: str) -> None:
    save_language_model(tmp_path, kind)
    texts = ["a", *TEXTS, "", None]
    with packhorse.load(tmp_path, task="perplexity", precision="fp32") as engine:
        rows = engine.predict(texts)
    sums, counts = (np.array(rows[name].to_pylist()[:-1], np.float64) for name in ("log_likelihood", "num_tokens"))
    of_texts = np.array([p for p in rows["perplexity"].to_pylist() if p is not None])
    table = pa.table({"text": texts})
    found = packhorse.evaluate(tmp_path, table, task="perplexity", shard_rows=1, **AS_IT_IS)
    assert found.metrics["perplexity"] == pytest.approx(np.exp(-sums.sum() / counts.sum()), rel=1e-5)
    assert found.metrics["mean_perplexity"] == pytest.approx(of_texts.mean(), rel=1e-5)
    assert found.metrics["tokens"] == counts.sum()
    assert (found.measured_rows, found.errors) == (len(texts) - 1, {"null_text": 1})
    with pytest.raises(UsageError, match="perplexity needs no labels"):
        packhorse.evaluate(tmp_path, table, "text", task="perplexity")


# -- pairs


def test_ranking_is_scipys_on_the_scores_of_a_run(tmp_path: Path) -> None:
    folder = save_classifier(tmp_path / "m", num_labels=1, initializer_range=0.6)
    with packhorse.load(folder, task="text-ranking", precision="fp32") as engine:
        scores = engine.predict(TEXTS, TEXTS[::-1])["score"].to_numpy()
    labels = np.round(np.random.default_rng(0).normal(size=len(TEXTS)), 1)
    table = pa.table({"query": TEXTS, "text": TEXTS[::-1], "label": labels})
    found = packhorse.evaluate(folder, table, "label", task="text-ranking", **AS_IT_IS).metrics
    assert found["spearman"] == pytest.approx(scipy.stats.spearmanr(scores, labels).statistic)
    assert found["pearson"] == pytest.approx(scipy.stats.pearsonr(scores, labels).statistic, abs=1e-6)


@pytest.mark.parametrize(
    "settings",
    [{}, {"prompt_name": "query"}, {"long": "windows", "max_length": 8, "stride": 2}, {"batch_size": 2}],
    ids=["plain", "prompt", "windows", "small batches"],
)
def test_pairs_are_scipys_on_the_embeddings_of_a_run(tmp_path: Path, encoder: Path, settings: dict[str, Any]) -> None:
    folder = with_prompts(tmp_path / "m", encoder)
    first, second = [*TEXTS, None, "a", "b"], [*TEXTS[1:], TEXTS[0], "a", None, "b"]
    with packhorse.load(folder, task="feature-extraction", precision="fp32", **settings) as engine:
        a, b = engine.embed(TEXTS), engine.embed([*TEXTS[1:], TEXTS[0]])
    cosines = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    labels = np.round(np.random.default_rng(0).normal(size=len(TEXTS)), 1)
    table = pa.table({"a": first, "b": second, "s": [*labels, 1.0, 1.0, None]})
    told = {"text_column": "a", "pair_column": "b", "shard_rows": 6, "task": "feature-extraction"} | AS_IT_IS | settings
    found = packhorse.evaluate(folder, table, "s", **told)
    assert found.metrics["spearman"] == pytest.approx(scipy.stats.spearmanr(cosines, labels).statistic, abs=1e-6)
    assert found.metrics["pearson"] == pytest.approx(scipy.stats.pearsonr(cosines, labels).statistic, abs=1e-5)
    assert (found.measured_rows, found.unlabelled_rows, found.errors) == (len(TEXTS), 1, {"null_text": 2})


def test_ranks_are_scipys() -> None:
    from packhorse.evaluating.correlations import ranks

    values = np.random.default_rng(0).integers(0, 30, 200).astype(np.float64)
    np.testing.assert_array_equal(ranks(torch.tensor(values)).numpy(), scipy.stats.rankdata(values))


# -- what does not fit


def test_a_batch_that_does_not_fit_is_halved_and_a_row_alone_is_an_error(
    bert: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from packhorse.backends.torch.model import TorchModel
    from packhorse.errors import DeviceOutOfMemoryError

    plain = TorchModel.on_device

    def small(self: Any, batch: Any) -> Any:
        if batch.real_tokens > 20:
            raise DeviceOutOfMemoryError("made up")
        return plain(self, batch)

    monkeypatch.setattr(TorchModel, "on_device", small)
    texts = [*TEXTS, "very " * 40]
    found = packhorse.evaluate(bert, pa.table({"text": texts, "label": [0] * len(texts)}), "label", **AS_IT_IS)
    assert (found.measured_rows, found.errors) == (len(TEXTS), {"out_of_memory": 1})


def test_progress_is_told_up_to_all_rows(bert: Path) -> None:
    seen: list[tuple[float, float]] = []
    table = pa.table({"text": TEXTS, "label": [0] * len(TEXTS)})
    packhorse.evaluate(bert, table, "label", shard_rows=4, on_rows=lambda *rows: seen.append(rows), **AS_IT_IS)
    rows = [row for row, _ in seen]
    assert rows == sorted(rows)
    assert seen[-1] == (len(TEXTS), len(TEXTS))
