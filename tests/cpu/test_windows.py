"""--long windows against windows that transformers' tokenizer cuts, each alone through plain transformers."""

from __future__ import annotations

from collections.abc import Callable
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
from tests.cpu.embedders import save_today
from tests.cpu.engine import load
from tests.models import WORDS, save_classifier

TOLERANCE = 3e-5
MAX_LENGTH = reference.MAX_LENGTH
SHORT = ["good", "the end", "", "a film", "the end"]
TEXTS = [*reference.texts_of_all_lengths(16), "very boring " * 200, *SHORT]
QUERIES = [" ".join(WORDS[: i % 9]) for i in range(len(TEXTS))]
COMBINED: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "mean": lambda windows: windows.mean(0), "max": lambda windows: windows.amax(0), "first": lambda windows: windows[0]
}  # fmt: skip


def windows(tokenizer: Any, text: str, pair: str | None, stride: int) -> list[dict[str, torch.Tensor]]:
    """The model's inputs of each window; over the second text of a pair."""
    made = tokenizer(
        [text], None if pair is None else [pair], max_length=MAX_LENGTH, stride=stride, return_overflowing_tokens=True,
        truncation=True if pair is None else "only_second",
    )  # fmt: skip
    names = ("input_ids", "token_type_ids", "attention_mask")
    return [{n: torch.tensor([made[n][i]]) for n in names if n in made} for i in range(len(made["input_ids"]))]


def of_windows(
    folder: Path, texts: list[str], pairs: list[str] | None = None, stride: int = 0, auto: str = "logits"
) -> list[torch.Tensor]:
    """[windows, labels] of each row; or for "mean" [windows, hidden + 1]: the mean of the last hidden state, and how
    many tokens it is of."""
    is_body = auto == "mean"
    model, tokenizer = reference.load(folder, "AutoModel" if is_body else "AutoModelForSequenceClassification")
    rows = []
    with torch.inference_mode():
        for i, text in enumerate(texts):
            made = []
            for inputs in windows(tokenizer, text, pairs[i] if pairs else None, stride):
                output = model(**inputs)
                hidden = output.last_hidden_state[0] if is_body else output.logits[0]
                made.append(torch.cat([hidden.mean(0), torch.tensor([float(len(hidden))])]) if is_body else hidden)
            rows.append(torch.stack(made))
    return rows


@pytest.fixture(scope="module")
def embedder(encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Mean of tokens, normalized."""
    from sentence_transformers.sentence_transformer.modules import Normalize

    return save_today(tmp_path_factory.mktemp("embedder") / "model", encoder, after=[Normalize()])


@pytest.mark.parametrize(("combine", "stride", "with_pairs"), [
    ("mean", 0, False), ("mean", 20, True), ("max", 7, False), ("first", 5, True),
])  # fmt: skip
def test_classification_combines_the_logits_of_windows(
    bert: Path, tmp_path: Path, combine: str, stride: int, with_pairs: bool
) -> None:
    firsts, seconds = (QUERIES, TEXTS) if with_pairs else (TEXTS, None)
    found = of_windows(bert, firsts, seconds, stride)
    assert max(map(len, found)) > 5
    wanted = torch.stack([COMBINED[combine](logits) for logits in found]).softmax(1).numpy()
    with load(bert, scores="all", long="windows", stride=stride, combine=combine) as engine:
        table = engine.predict(firsts, seconds)
        rows = {"text": firsts} | ({"second": seconds} if seconds else {})
        report = engine.run(rows, str(tmp_path / "out/"), text_column="text",
                            pair_column="second" if seconds else None, shard_rows=8)  # fmt: skip
    for made in (table, pq.read_table(tmp_path / "out")):
        np.testing.assert_allclose(np.array(made["scores"].to_pylist()), wanted, atol=TOLERANCE)
        assert made["label"].to_pylist() == [f"LABEL_{i}" for i in wanted.argmax(1)]
    assert report.counters.truncated_rows == report.counters.truncated_tokens == 0
    assert report.counters.rows == len(TEXTS)


def test_padded_models_read_windows_too(tmp_path: Path) -> None:
    folder = save_classifier(tmp_path / "several", "distilbert", problem_type="multi_label_classification")
    logits = torch.stack([made.mean(0) for made in of_windows(folder, TEXTS, stride=9)])
    with load(folder, scores="all", long="windows", stride=9, attention="sdpa") as engine:
        table = engine.predict(TEXTS)
    np.testing.assert_allclose(np.array(table["scores"].to_pylist()), logits.sigmoid().numpy(), atol=TOLERANCE)


@pytest.mark.parametrize("combine", ["mean", "max", "first"])
def test_ranking_combines_the_logits_of_a_documents_windows(tmp_path: Path, combine: str) -> None:
    folder = save_classifier(tmp_path / "ranker", num_labels=1)
    found = of_windows(folder, QUERIES, TEXTS, stride=4)
    wanted = torch.stack([COMBINED[combine](logits) for logits in found]).sigmoid()[:, 0].numpy()
    with load(folder, task="text-ranking", long="windows", stride=4, combine=combine) as engine:
        table = engine.predict(QUERIES, TEXTS)
    np.testing.assert_allclose(table["score"].to_numpy(), wanted, atol=TOLERANCE)


def test_embeddings_of_windows_are_weighted_by_their_tokens(embedder: Path) -> None:
    found = of_windows(embedder, TEXTS, stride=11, auto="mean")
    units = [torch.nn.functional.normalize(made[:, :-1], dim=1) for made in found]
    sums = torch.stack([(unit * made[:, -1:]).sum(0) for unit, made in zip(units, found, strict=True)])
    wanted = torch.nn.functional.normalize(sums, dim=1).numpy()
    with load(embedder, long="windows", stride=11) as engine:
        np.testing.assert_allclose(engine.embed(TEXTS), wanted, atol=TOLERANCE)
    with load(embedder, long="windows", stride=11, combine="all") as engine:
        table = engine.predict(TEXTS)
        with pytest.raises(UsageError, match="combine 'all'"):
            engine.embed(TEXTS)
    assert [len(vectors) for vectors in table["embedding"].to_pylist()] == [len(unit) for unit in units]
    for vectors, unit in zip(table["embedding"].to_pylist(), units, strict=True):
        np.testing.assert_allclose(np.array(vectors), unit.numpy(), atol=TOLERANCE)


def test_without_normalizing_the_mean_is_that_of_all_tokens(encoder: Path) -> None:
    found = of_windows(encoder, TEXTS, auto="mean")
    wanted = torch.stack([(made[:, :-1] * made[:, -1:]).sum(0) / made[:, -1].sum() for made in found]).numpy()
    with load(encoder, long="windows") as engine:
        np.testing.assert_allclose(engine.embed(TEXTS), wanted, atol=TOLERANCE)


def test_all_windows_as_int8_have_a_scale_each(embedder: Path, tmp_path: Path) -> None:
    with load(embedder, long="windows", combine="all") as engine:
        wanted = engine.predict(TEXTS)["embedding"].to_pylist()
    for name in ("out.parquet", "out.jsonl"):
        packhorse.run(embedder, {"text": TEXTS}, tmp_path / name, long="windows", combine="all", devices="cpu",
                      embedding_format="int8")  # fmt: skip
    table = pq.read_table(tmp_path / "out.parquet")
    for row, scales, vectors in zip(
        table["embedding"].to_pylist(), table["embedding_scale"].to_pylist(), wanted, strict=True
    ):
        made = np.array(row) * np.array(scales)[:, None]
        assert (np.abs(made - np.array(vectors)) <= 0.51 * np.array(scales)[:, None]).all()
    with pytest.raises(UsageError, match="npy holds one embedding a row"):
        packhorse.run(embedder, {"text": TEXTS}, tmp_path / "out.npy", long="windows", combine="all", devices="cpu")


def test_rows_of_one_window_have_the_bytes_of_truncate(embedder: Path, bert: Path, tmp_path: Path) -> None:
    pairs = SHORT[::-1]
    ranker = save_classifier(tmp_path / "ranker", num_labels=1)
    for model, given, settings in (
        (embedder, (SHORT,), {}), (ranker, (SHORT, pairs), {"task": "text-ranking"}),
    ):  # fmt: skip
        made = []
        for long in ("truncate", "windows"):
            with load(model, long=long, **settings) as engine:
                made.append(engine.predict(*given))
        assert made[0].equals(made[1])
    tables = []
    for long in ("truncate", "windows"):
        with load(bert, long=long, scores="all") as engine:
            tables.append(engine.predict(SHORT))
    assert tables[0]["label"].equals(tables[1]["label"])
    scores = [np.array(table["scores"].to_pylist()) for table in tables]
    np.testing.assert_allclose(scores[0], scores[1], atol=1e-6)  # a softmax of the device, and one of numpy


def test_a_pair_whose_first_text_leaves_no_window_is_an_error(bert: Path) -> None:
    with load(bert, long="windows") as engine:
        table = engine.predict(["good", "very boring " * 60, None], ["bad", "bad", "bad"])
    kinds = [error and error["kind"] for error in table["error"].to_pylist()]
    assert kinds == [None, "text_too_long", "null_text"]
    assert table["label"].is_null().to_pylist() == [False, True, True]


@pytest.mark.parametrize(("settings", "message"), [
    ({"long": "windows", "stride": 62}, "--stride 62: a window has 62 tokens"),
    ({"stride": 3}, "--stride 3: goes with --long windows"),
    ({"combine": "max"}, "--combine max: goes with --long windows"),
    ({"long": "windows", "combine": "all"}, "--combine all: a list of embeddings, and this model does text-class"),
])  # fmt: skip
def test_settings_that_make_no_windows_are_refused(
    bert: Path, tmp_path: Path, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        packhorse.run(bert, pa.table({"text": TEXTS}), tmp_path / "out", devices="cpu", **settings)
