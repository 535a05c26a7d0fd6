"""Jobs whose rows are several sequences, on the null backend: windows over long texts, texts with labels. What it
predicts is worked out row by row; stops, retries, duplicates and counts are those of other jobs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from packhorse.errors import RowFailedError, UsageError
from tests.models import save_null_model, word_piece_tokenizer
from tests.null.reference import MAX_LENGTH, Prediction, checksum, predicted, some_texts
from tests.null.runs import parts, rows_of, run, run_until_stopped
from tests.null.stages import run_on_device

TEXTS = [*some_texts(118), "good film " * 150, "good film " * 150]
ROWS = pa.table({"text": TEXTS, "number": range(120)})
STRIDE = 9
JOB: dict[str, Any] = {"text_column": "text", "shard_rows": 15, "max_batch_tokens": 300}
WINDOWS: dict[str, Any] = {**JOB, "long": "windows", "stride": STRIDE}
SMALL = 50  # tokens: windows that are full do not fit on that device
LABELS = ["good", "very bad", "dull film"]


def windows(text: str) -> list[Any]:
    tokenizer = word_piece_tokenizer()
    tokenizer.enable_truncation(MAX_LENGTH, stride=STRIDE)
    first = tokenizer.encode(text)
    return [first, *first.overflowing]


def expected(texts: list[str | None]) -> list[Prediction]:
    """The softmax of the mean of a row's windows."""
    rows = []
    for text in texts:
        if text is None:
            rows.append(Prediction(None, None, "null_text"))
            continue
        values = np.mean([checksum(w.ids, w.type_ids, 2) for w in windows(text)], axis=0, dtype=np.float64)
        powers = np.exp(values - values.max())
        best = int(values.argmax())
        rows.append(Prediction(f"L{best}", float(powers[best] / powers.sum()), None))
    return rows


def assert_as_expected(rows: list[dict[str, Any]], wanted: list[Prediction]) -> None:
    for mine, row in zip(predicted(rows), wanted, strict=True):
        assert (mine.label, mine.error) == (row.label, row.error)
        assert mine.score == pytest.approx(row.score, abs=1e-6)


def test_windows_of_a_job_and_its_counts(null_model: Path, tmp_path: Path) -> None:
    report = run(null_model, ROWS, tmp_path, **WINDOWS)
    assert_as_expected(rows_of(tmp_path), expected(TEXTS))
    made = [windows(text) for text in TEXTS if text is not None]
    counters = report.counters
    assert max(map(len, made)) > 2
    assert (counters.rows, counters.truncated_rows, counters.truncated_tokens) == (120, 0, 0)
    assert counters.row_tokens == sum(len(window.ids) for row in made for window in row)
    assert counters.duplicate_rows > 0
    assert counters.error_rows == TEXTS.count(None)


@pytest.mark.parametrize("looks", [8, 20, 31])
def test_a_stopped_job_of_windows_goes_on_to_the_same_bytes(null_model: Path, tmp_path: Path, looks: int) -> None:
    run(null_model, ROWS, tmp_path / "once", **WINDOWS)
    assert run_until_stopped(null_model, ROWS, tmp_path / "twice", looks, **WINDOWS)
    report = run(null_model, ROWS, tmp_path / "twice", **WINDOWS)
    assert (report.status, report.rows) == ("finished", 120)
    assert parts(tmp_path / "twice") == parts(tmp_path / "once")


def test_duplicates_are_the_same_with_and_without_dedup(null_model: Path, tmp_path: Path) -> None:
    for name, dedup in (("with", True), ("without", False)):
        run(null_model, ROWS, tmp_path / name, **WINDOWS, dedup=dedup)
    assert parts(tmp_path / "with") == parts(tmp_path / "without")


def test_rows_of_which_a_window_does_not_fit_are_errors_until_they_are_retried(
    null_model: Path, tmp_path: Path
) -> None:
    """A batch of one window that does not fit makes an error of its row, whatever its other windows are."""
    wanted = expected(TEXTS)
    is_long = [text is not None and len(windows(text)[0].ids) > SMALL for text in TEXTS]
    run_on_device(null_model, ROWS, tmp_path, SMALL, **WINDOWS)
    before = rows_of(tmp_path)
    failed = Prediction(None, None, "out_of_memory")
    assert_as_expected(before, [failed if wrong else row for wrong, row in zip(is_long, wanted, strict=True)])
    assert sum(is_long) > 10
    report = run(null_model, ROWS, tmp_path, **WINDOWS, retry_errors=True)
    assert report.this_run.rows == sum(is_long) + TEXTS.count(None)
    assert_as_expected(rows_of(tmp_path), wanted)


@pytest.mark.parametrize("settings", [WINDOWS, {**JOB, "task": "zero-shot-classification", "labels": LABELS}])
def test_progress_counts_rows_and_ends_with_the_last(tmp_path: Path, settings: dict[str, Any]) -> None:
    """As the live counters saw it, from which the progress line is made too."""
    run(save_nli(tmp_path / "model"), ROWS, tmp_path / "out", **settings)
    report = json.loads((tmp_path / "out" / "_packhorse" / "report.json").read_text())
    rows = [sample["rows"] for sample in report["samples"]]
    assert rows == sorted(rows)
    assert rows[-1] == report["commits"][-1]["rows"] == 120


def save_nli(folder: Path) -> Path:
    """For the null backend: outputs named as those of natural language inference."""
    save_null_model(folder, 3)
    config = json.loads((folder / "config.json").read_text())
    names = {"0": "entailment", "1": "neutral", "2": "contradiction"}
    (folder / "config.json").write_text(json.dumps(config | {"id2label": names}))
    return folder


def test_labels_of_a_job(tmp_path: Path) -> None:
    model = save_nli(tmp_path / "model")
    rows = ROWS.append_column("tags", pa.array([LABELS[: i % 4] for i in range(120)]))
    settings = {**JOB, "task": "zero-shot-classification", "labels_column": "tags", "max_error_rate": 1.0}
    run(model, rows, tmp_path / "once", **settings)
    assert run_until_stopped(model, rows, tmp_path / "twice", 25, **settings)
    report = run(model, rows, tmp_path / "twice", **settings)
    assert parts(tmp_path / "twice") == parts(tmp_path / "once")
    tokenizer = word_piece_tokenizer()
    tokenizer.enable_truncation(MAX_LENGTH, strategy="only_first")
    truncated = 0
    for i, row in enumerate(rows_of(tmp_path / "once")):
        if TEXTS[i] is None or not LABELS[: i % 4]:
            assert row["labels"] is None and row["error"]["kind"] == ("null_text" if TEXTS[i] is None else "no_labels")
            continue
        made = [tokenizer.encode(TEXTS[i], f"This example is {label}.") for label in LABELS[: i % 4]]
        truncated += any(e.overflowing for e in made)
        values = np.array([checksum(e.ids, e.type_ids, 3) for e in made], np.float64)
        powers = np.exp(values[:, [0, 2]] if len(made) == 1 else values[:, 0])
        scores = powers[:, 0] / powers.sum(1) if len(made) == 1 else powers / powers.sum()
        order = np.argsort(-scores, kind="stable")
        assert row["labels"] == [LABELS[k] for k in order]
        np.testing.assert_allclose(row["scores"], scores[order], atol=1e-6)
    assert report.counters.truncated_rows == truncated > 10


def test_the_first_error_stops_a_job_that_is_to_fail(null_model: Path, tmp_path: Path) -> None:
    with pytest.raises(RowFailedError):
        run(null_model, ROWS, tmp_path, **WINDOWS, on_error="fail")


def test_a_row_counts_as_a_duplicate_once_and_the_page_tells_of_sequences(tmp_path: Path) -> None:
    """Sequences of which others have the tokens are more than the rows."""
    settings = {**JOB, "task": "zero-shot-classification", "labels": LABELS}
    rows = pa.table({"text": ["good film"] * 20 + ["dull"] * 10, "number": range(30)})
    report = run(save_nli(tmp_path / "model"), rows, tmp_path / "out", **settings)
    assert (report.rows, report.counters.duplicate_rows) == (30, 30 - 3)  # two shards: the second has both texts
    page = (tmp_path / "out" / "_packhorse" / "report.html").read_text()
    assert "Sequence lengths and padding" in page


@pytest.mark.parametrize(
    ("settings", "words"),
    {
        "twice": ({"labels": ["good", "bad", "good"]}, "--labels 'good,bad,good': 'good' stands there twice"),
        "pair": ({"labels": ["good"], "pair_column": "more"}, "labels of each row are --labels-column more"),
        "numbers": ({"labels_column": "number"}, "--labels-column number: the column is int64, not text"),
        "missing": ({"labels_column": "tags"}, "--labels-column tags: no such column"),
    }.values(),
)  # fmt: skip
def test_labels_that_are_none(tmp_path: Path, settings: dict[str, Any], words: str) -> None:
    rows = ROWS.append_column("more", pa.array(["good, bad"] * 120))
    with pytest.raises(UsageError, match=words):
        run(save_nli(tmp_path / "model"), rows, tmp_path / "out", task="zero-shot-classification", **JOB, **settings)


def test_a_list_of_labels_with_a_null_in_it(tmp_path: Path) -> None:
    rows = pa.table({"text": ["good film"] * 2, "tags": [["good", None], ["good"]]})
    settings = {**JOB, "task": "zero-shot-classification", "labels_column": "tags", "max_error_rate": 1.0}
    run(save_nli(tmp_path / "model"), rows, tmp_path / "out", **settings)
    first, second = (row["error"] for row in rows_of(tmp_path / "out"))
    assert first == {"kind": "not_text", "message": "column 'tags': a list with a null in it, not of strings alone"}
    assert second is None
