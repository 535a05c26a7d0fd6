"""Whole runs: every row in is one row out, in input order, as worked out row by row in reference.py."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from packhorse.errors import UsageError
from tests.models import save_null_model, word_piece_tokenizer
from tests.null.reference import MAX_LENGTH, checksum, predicted, predictions, some_texts
from tests.null.runs import parts, rows_of, run, strict_lines

TEXTS = some_texts(700)
ROWS = pa.table({"id": range(len(TEXTS)), "text": TEXTS})
EXPECTED = predictions(TEXTS)


def token_rows() -> list[tuple[int, ...]]:
    """The tokens of each row that has a text."""
    tokenizer = word_piece_tokenizer()
    tokenizer.enable_truncation(MAX_LENGTH)
    return [tuple(tokenizer.encode(text).ids) for text in TEXTS if text is not None]


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"shard_rows": 1_000},
        {"shard_rows": 37},
        {"max_batch_tokens": 64},
        {"max_batch_tokens": 1, "shard_rows": 100},
        {"batch_size": 3},
        {"batching": "fixed"},
        {"batching": "fixed", "batch_size": 7, "shard_rows": 50},
        {"dedup": False},
        {"tokenizer_threads": 1},
        {"exact": True},
    ],
    ids=str,
)
def test_every_row_has_its_own_prediction_in_its_own_place(
    null_model: Path, tmp_path: Path, settings: dict[str, Any]
) -> None:
    report = run(null_model, ROWS, tmp_path, **settings)
    found = rows_of(tmp_path)
    assert [row["id"] for row in found] == list(range(len(TEXTS)))
    assert [row["text"] for row in found] == TEXTS
    assert predicted(found) == EXPECTED
    assert (report.status, report.rows) == ("finished", len(TEXTS))


def test_one_row_a_shard(null_model: Path, tmp_path: Path) -> None:
    run(null_model, ROWS.slice(0, 30), tmp_path, shard_rows=1)
    assert list(parts(tmp_path)) == [f"part-{i:06d}.parquet" for i in range(30)]
    assert predicted(rows_of(tmp_path)) == EXPECTED[:30]


def test_pairs_are_told_apart_from_single_texts_and_from_each_other(null_model: Path, tmp_path: Path) -> None:
    pairs = ["film", None, *some_texts(198, seed=1)]
    rows = {"text": TEXTS[:200], "pair": pairs}
    run(null_model, rows, tmp_path, text_column="text", pair_column="pair", shard_rows=64)
    assert predicted(rows_of(tmp_path)) == predictions(TEXTS[:200], pairs)


@pytest.mark.parametrize("max_length", [3, 10, 64])
def test_rows_are_cut_at_the_maximum_length(null_model: Path, tmp_path: Path, max_length: int) -> None:
    report = run(null_model, ROWS, tmp_path, max_length=max_length)
    assert predicted(rows_of(tmp_path)) == predictions(TEXTS, max_length=max_length)
    whole = [len(word_piece_tokenizer().encode(text).ids) for text in TEXTS if text is not None]
    assert report.counters.truncated_rows == sum(n > max_length for n in whole)
    assert report.counters.truncated_tokens == sum(max(n - max_length, 0) for n in whole)


def test_a_maximum_length_beyond_the_models_is_refused(null_model: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--max-length 65: the model takes at most 64"):
        run(null_model, ROWS, tmp_path / "out", max_length=65)


def test_embeddings_are_the_rows_own_and_null_where_there_is_none(tmp_path: Path) -> None:
    model = save_null_model(tmp_path / "model", architecture="BertModel")
    run(model, ROWS, tmp_path / "out", shard_rows=300, max_batch_tokens=500)
    tokenizer = word_piece_tokenizer()
    tokenizer.enable_truncation(MAX_LENGTH)
    for row in rows_of(tmp_path / "out"):
        ids = [] if row["text"] is None else tokenizer.encode(row["text"]).ids
        expected = None if row["text"] is None else np.array(checksum(ids, [0] * len(ids), 32)).tolist()
        assert row["embedding"] == expected


def test_all_scores_hold_the_best_one(null_model: Path, tmp_path: Path) -> None:
    run(null_model, ROWS, tmp_path, scores="all")
    found = rows_of(tmp_path)
    assert predicted(found) == EXPECTED
    for row in found:
        assert (row["scores"] is None) == (row["score"] is None)
        assert row["scores"] is None or row["scores"][int(row["label"][1])] == row["score"] == max(row["scores"])


def test_neighbours_of_rows_in_error_are_unchanged(null_model: Path, tmp_path: Path) -> None:
    full = [text or "filled" for text in TEXTS]
    holes = [None if i % 5 == 2 else text for i, text in enumerate(full)]
    run(null_model, {"text": full}, tmp_path / "full", shard_rows=90)
    run(null_model, {"text": holes}, tmp_path / "holes", shard_rows=90)
    for i, (a, b) in enumerate(zip(rows_of(tmp_path / "full"), rows_of(tmp_path / "holes"), strict=True)):
        if i % 5 == 2:
            assert b == {"text": None, "label": None, "score": None, "error": b["error"]}
            assert b["error"]["kind"] == "null_text"
        else:
            assert a == b


def test_duplicates_are_computed_once_a_shard_and_counted(null_model: Path, tmp_path: Path) -> None:
    whole = token_rows()
    report = run(null_model, ROWS, tmp_path / "a", shard_rows=1_000)
    assert report.counters.duplicate_rows == len(whole) - len(set(whole))
    assert report.counters.real_tokens == sum(map(len, set(whole)))
    assert report.counters.row_tokens == sum(map(len, whole))
    every = run(null_model, ROWS, tmp_path / "b", shard_rows=1_000, dedup=False)
    assert (every.counters.duplicate_rows, every.counters.real_tokens) == (0, every.counters.row_tokens)
    assert parts(tmp_path / "a") == parts(tmp_path / "b")


def test_counters_of_shards_add_up_to_the_reports(null_model: Path, tmp_path: Path) -> None:
    report = run(null_model, ROWS, tmp_path, shard_rows=90, max_batch_tokens=256)
    records = [json.loads(p.read_bytes()) for p in sorted((tmp_path / "_packhorse/shards").glob("*.json"))]
    assert [record["num_rows"] for record in records] == [90] * 7 + [70]
    counters = report.counters
    assert counters.rows == counters.error_rows + len(token_rows())
    assert counters.errors == {"null_text": sum(text is None for text in TEXTS)}
    assert counters.row_tokens == sum(map(len, token_rows()))
    assert counters.computed_tokens >= counters.real_tokens
    for name in (
        "rows",
        "truncated_rows",
        "truncated_tokens",
        "duplicate_rows",
        "real_tokens",
        "computed_tokens",
        "batches",
    ):
        assert getattr(counters, name) == sum(record["counters"][name] for record in records)
    assert not any(name.endswith("_s") for record in records for name in record["counters"])


def test_padding_is_counted(null_model: Path, tmp_path: Path) -> None:
    report = run(null_model, {"text": ["a", "a a a"]}, tmp_path)  # 3 and 5 tokens in one batch
    assert (report.counters.real_tokens, report.counters.computed_tokens, report.padding_efficiency) == (8, 10, 0.8)


@pytest.mark.parametrize("name", ["whole.parquet", "whole.jsonl"])
def test_one_file_is_the_parts_one_after_the_other(null_model: Path, tmp_path: Path, name: str) -> None:
    run(null_model, ROWS, tmp_path / "folder", shard_rows=90)
    report = run(null_model, ROWS, tmp_path / name, shard_rows=90)
    assert predicted(rows_of(tmp_path / name)) == predicted(rows_of(tmp_path / "folder"))
    assert report.sha256 is not None and not parts(tmp_path / f"{name}.packhorse")
    if name == "whole.parquet":
        assert pq.read_table(tmp_path / name).equals(pq.read_table(tmp_path / "folder"))


def test_two_runs_write_the_same_bytes(null_model: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        run(null_model, ROWS, tmp_path / name, shard_rows=90)
    assert parts(tmp_path / "a") == parts(tmp_path / "b")


@pytest.mark.parametrize("limit", [0, 1, 89, 90, 91, 5_000])
def test_a_limit_takes_the_first_rows(null_model: Path, tmp_path: Path, limit: int) -> None:
    report = run(null_model, ROWS, tmp_path, limit=limit, shard_rows=30)
    assert predicted(rows_of(tmp_path)) == EXPECTED[:limit]
    assert report.rows == min(limit, len(TEXTS))


@pytest.mark.parametrize("name", ["folder", "whole.parquet", "whole.jsonl"])
def test_no_rows_make_an_output_with_columns(null_model: Path, tmp_path: Path, name: str) -> None:
    empty = ROWS.slice(0, 0)
    pq.write_table(empty, tmp_path / "rows.parquet")
    report = run(null_model, tmp_path / "rows.parquet", tmp_path / name)
    assert (report.rows, report.status, rows_of(tmp_path / name)) == (0, "finished", [])
    if name != "whole.jsonl":
        assert pq.read_table(tmp_path / name).column_names == ["id", "text", "label", "score", "error"]
    assert run(null_model, tmp_path / "rows.parquet", tmp_path / name).status == "already_finished"


def test_the_report_is_on_disk(null_model: Path, tmp_path: Path) -> None:
    report = run(null_model, ROWS, tmp_path, shard_rows=90)
    saved = json.loads((tmp_path / "_packhorse/report.json").read_bytes())
    assert saved == json.loads(json.dumps(report.to_dict()))
    assert (saved["rows"], saved["status"], saved["shards"]) == (len(TEXTS), "finished", 8)
    assert saved["parts"] == list(parts(tmp_path))
    assert saved["counters"]["errors"] == {"null_text": TEXTS.count(None)}
    assert saved["plan"]["text_column"] == "text" and saved["plan"]["backend"] == "null"


def test_a_folder_of_parts_is_one_table_to_other_tools(null_model: Path, tmp_path: Path) -> None:
    run(null_model, ROWS, tmp_path, shard_rows=90)
    assert pq.read_table(tmp_path)["id"].to_pylist() == list(range(len(TEXTS)))
    assert sorted(p.name for p in tmp_path.iterdir())[0] == "_packhorse"


def test_lines_and_columns_have_the_same_predictions(null_model: Path, tmp_path: Path) -> None:
    run(null_model, ROWS, tmp_path / "a.jsonl")
    assert predicted(strict_lines(tmp_path / "a.jsonl")) == EXPECTED
