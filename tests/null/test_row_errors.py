"""Rows that cannot be done: quarantined and counted, or the end of the run."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

from packhorse.errors import RowFailedError, TooManyErrorsError
from tests.null.reference import predicted, predictions
from tests.null.runs import parts, rows_of, run


def test_to_fail_names_the_row_and_keeps_what_was_done_before(null_model: Path, tmp_path: Path) -> None:
    texts = ["good"] * 57 + [None] + ["bad"] * 20
    with pytest.raises(RowFailedError, match=r"row 57: null_text.*--on-error quarantine") as caught:
        run(null_model, {"text": texts}, tmp_path, shard_rows=10, on_error="fail")
    assert caught.value.exit_code == 1
    assert predicted(rows_of(tmp_path)) == predictions(texts[:50])
    run(null_model, {"text": texts}, tmp_path, shard_rows=10, on_error="quarantine")
    assert predicted(rows_of(tmp_path)) == predictions(texts)


def test_to_fail_fails_again_while_the_row_is_there(null_model: Path, tmp_path: Path) -> None:
    for _ in range(2):
        with pytest.raises(RowFailedError, match="row 3:"):
            run(null_model, {"text": ["a", "b", "c", None]}, tmp_path, on_error="fail")


def test_lines_of_every_kind_of_error_are_quarantined_and_counted(null_model: Path, tmp_path: Path) -> None:
    lines = [
        b'{"text": "a"}',
        b"{}",
        b"no",
        b'{"text": "\xff"}',
        b'{"text": "\\ud800"}',
        b'{"text": 1}',
        b'{"text": "b"}',
    ]
    (tmp_path / "in.jsonl").write_bytes(b"\n".join(lines))
    report = run(null_model, tmp_path / "in.jsonl", tmp_path / "out")
    kinds = [None, "null_text", "invalid_json", "invalid_utf8", "lone_surrogate", "not_text", None]
    assert [row.error for row in predicted(rows_of(tmp_path / "out"))] == kinds
    assert report.counters.errors == {kind: 1 for kind in kinds if kind}
    assert (report.counters.error_rows, report.rows) == (5, 7)


def with_errors(count: int, of: int) -> pa.Table:
    return pa.table({"text": pa.array([None if i < count else "good" for i in range(of)], pa.string())})


def test_too_many_errors_end_the_run_with_exit_code_4(null_model: Path, tmp_path: Path) -> None:
    with pytest.raises(TooManyErrorsError) as caught:
        run(null_model, with_errors(501, 2_000), tmp_path, shard_rows=500)
    assert caught.value.exit_code == 4
    words = ["501 of 1,000 rows", "501 null_text", "--max-error-rate 0.5", "the first: row 500, null_text"]
    assert all(word in str(caught.value) for word in words)
    assert len(parts(tmp_path)) == 2


@pytest.mark.parametrize(
    ("errors", "rows", "rate"), [(999, 999, 0.5), (500, 1_000, 0.5), (1_000, 1_000, 1.0), (0, 1_000, 0.0)]
)
def test_few_rows_or_few_errors_do_not_end_it(
    null_model: Path, tmp_path: Path, errors: int, rows: int, rate: float
) -> None:
    report = run(null_model, with_errors(errors, rows), tmp_path, max_error_rate=rate, shard_rows=300)
    assert (report.rows, report.counters.error_rows) == (rows, errors)


def test_a_single_error_is_too_many_at_a_rate_of_0(null_model: Path, tmp_path: Path) -> None:
    with pytest.raises(TooManyErrorsError, match="1 of 1,000 rows"):
        run(null_model, with_errors(1, 1_000), tmp_path, max_error_rate=0.0, shard_rows=250)


def test_the_same_command_again_ends_the_same_way(null_model: Path, tmp_path: Path) -> None:
    """Even where the shard that was too much is the last."""
    for _ in range(2):
        with pytest.raises(TooManyErrorsError):
            run(null_model, with_errors(1_000, 1_000), tmp_path)


def test_a_higher_rate_lets_it_go_on(null_model: Path, tmp_path: Path) -> None:
    with pytest.raises(TooManyErrorsError):
        run(null_model, with_errors(900, 2_000), tmp_path, max_error_rate=0.1, shard_rows=500)
    report = run(null_model, with_errors(900, 2_000), tmp_path, max_error_rate=1.0, shard_rows=500)
    assert (report.rows, report.counters.error_rows) == (2_000, 900)
