"""report.json and report.html of runs: every figure of the page is the JSON's, and the JSON's is what happened."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from packhorse.errors import DamagedError, UsageError
from packhorse.metrics import Counters, RunReport
from packhorse.outputs.records import sealed, unsealed
from packhorse.report.text import summary_lines
from tests.models import word_piece_tokenizer
from tests.null.reference import MAX_LENGTH, some_texts
from tests.null.report_page import check_figures
from tests.null.runs import run, run_until_stopped
from tests.null.stages import run_on_device

TEXTS = some_texts(300)


def saved(output: Path) -> tuple[dict[str, Any], str]:
    state = output / "_packhorse"
    return json.loads((state / "report.json").read_bytes()), (state / "report.html").read_text(encoding="utf-8")


def lengths_of(texts: list[str | None]) -> list[int]:
    tokenizer = word_piece_tokenizer()
    tokenizer.enable_truncation(MAX_LENGTH)
    return [len(tokenizer.encode(text).ids) for text in texts if text is not None]


def test_every_figure_of_the_page_stands_in_the_json(null_model: Path, tmp_path: Path) -> None:
    run(null_model, {"text": TEXTS}, tmp_path, shard_rows=70, max_batch_tokens=256, price_per_hour=1.5)
    report, html = saved(tmp_path)
    page = check_figures(html, report)
    keys = {figure.key for figure in page.figures}
    assert {"/rows", "/rows_per_s", "/wall_s", "/setup_s", "/error_rows", "/padding_efficiency", "/cost"} <= keys
    assert {"/counters/errors/null_text", "/lengths/0/rows", "/lanes/1/busy_share", "/machine/cores"} <= keys


def test_rows_and_tokens_by_length_are_those_of_the_rows(null_model: Path, tmp_path: Path) -> None:
    run(null_model, {"text": TEXTS}, tmp_path, shard_rows=70, max_batch_tokens=256, dedup=False)
    report, _ = saved(tmp_path)
    lengths = lengths_of(TEXTS)
    assert sum(bucket["rows"] for bucket in report["lengths"]) == len(lengths)
    for bucket in report["lengths"]:
        first, last = map(int, bucket["tokens"].split("-"))
        within = [n for n in lengths if first <= n <= last]
        assert (bucket["rows"], bucket["real_tokens"]) == (len(within), sum(within))
        assert bucket["computed_tokens"] >= bucket["real_tokens"]
        assert bucket["padding_efficiency"] == sum(within) / bucket["computed_tokens"]
    assert sum(bucket["computed_tokens"] for bucket in report["lengths"]) == report["counters"]["computed_tokens"]


def test_a_batchs_padding_is_spread_on_its_rows(null_model: Path, tmp_path: Path) -> None:
    run(null_model, {"text": ["a", "a a a"]}, tmp_path)  # 3 and 5 tokens in one batch: 5 computed for each
    report, _ = saved(tmp_path)
    assert report["counters"]["length_computed"] == {"1-4": 5, "5-8": 5}
    assert [bucket["padding_efficiency"] for bucket in report["lengths"]] == [0.6, 1.0]


def test_duplicates_count_as_rows_and_are_computed_once(null_model: Path, tmp_path: Path) -> None:
    report = run(null_model, {"text": ["a", "a", "a"]}, tmp_path)
    c = report.counters
    assert (c.length_rows, c.length_tokens, c.length_computed) == ({"1-4": 3}, {"1-4": 3}, {"1-4": 3})


def test_the_lanes_account_for_the_wall_time(null_model: Path, tmp_path: Path) -> None:
    run(null_model, {"text": TEXTS}, tmp_path, shard_rows=20)
    report, html = saved(tmp_path)
    for lane in report["lanes"]:
        assert sum(s["seconds"] for s in lane["stages"]) == pytest.approx(report["wall_s"], rel=0.05)
        assert lane["busy_share"] == pytest.approx(sum(s["share"] for s in lane["stages"] if s["is_busy"]))
    assert report["limiting_stage"] in ("reading", "tokenizing", "computing", "writing")
    assert report["limiting_stage"] in html.lower()


def test_the_forward_lane_adds_up_over_some_seconds(null_model: Path, tmp_path: Path) -> None:
    """What is waited for and computed is the wall time, before `other` takes the rest."""
    report = run_on_device(
        null_model, {"text": [f"a b {i}" for i in range(1_000)]}, tmp_path, before_batch=lambda _: time.sleep(0.1),
        shard_rows=250, batch_size=40, batching="fixed", dedup=False,
    )  # fmt: skip
    assert report.wall_s > 2.5
    stages = {stage["name"]: stage["seconds"] for stage in report.lanes[1]["stages"]}
    assert set(stages) == {"compute", "wait for input", "wait for output", "other"}
    assert stages.pop("other") <= 0.05 * report.wall_s
    assert sum(stages.values()) == pytest.approx(report.wall_s, rel=0.05)


@pytest.mark.parametrize(
    "seconds, waits, cause",
    [({"read_s": 6.0, "tokenize_s": 1.0}, (5.0, 0.2), "reading"), ({"tokenize_s": 6.0}, (5.0, 0.2), "tokenizing"),
     ({"write_s": 6.0}, (0.2, 5.0), "writing"), ({"read_s": 6.0}, (0.2, 0.2), "none")],
)  # fmt: skip
def test_what_the_device_waited_for_is_named(seconds: dict[str, float], waits: tuple[float, float], cause: str) -> None:
    counters = Counters(rows=9, real_tokens=90, computed_tokens=90, batches=1, compute_s=4.0)
    for name, value in seconds.items():
        setattr(counters, name, value)
    plan = {"device": "cpu", "task": "x", "precision": "fp32", "alternatives": []}
    report = RunReport("out", "finished", plan, counters, counters, wall_s=10.0, shards=1,
                       wait_input_s=waits[0], wait_output_s=waits[1])  # fmt: skip
    assert report.idle_cause == cause
    text = "\n".join(summary_lines(report))
    assert ("hardly idle" if cause == "none" else f"mostly for {cause}") in text


def test_the_page_says_how_long_the_device_waited_and_that_nothing_is_copied(null_model: Path, tmp_path: Path) -> None:
    run(null_model, {"text": TEXTS}, tmp_path, shard_rows=20)
    report, html = saved(tmp_path)
    share = (report["wait_input_s"] + report["wait_output_s"]) / report["wall_s"]
    assert report["idle_share"] == pytest.approx(min(share, 1.0))
    assert ("waiting mostly for" in html) == (report["idle_cause"] != "none")
    assert "none: the device&#39;s memory is the host&#39;s" in html
    check_figures(html, report)


def test_samples_and_commits_end_at_the_totals(null_model: Path, tmp_path: Path) -> None:
    run(null_model, {"text": TEXTS}, tmp_path, shard_rows=20)
    report, _ = saved(tmp_path)
    last = report["samples"][-1]
    assert last["rows"] == report["commits"][-1]["rows"] == len(TEXTS)
    assert last["real_tokens"] == report["counters"]["real_tokens"]
    assert last["computed_tokens"] == report["counters"]["computed_tokens"]
    assert last["elapsed_s"] <= report["wall_s"]


def test_up_to_three_examples_of_each_kind_of_error(null_model: Path, tmp_path: Path) -> None:
    lines = ['{"text": null}', '{"text": "good"}', "{broken"] * 5
    (tmp_path / "in.jsonl").write_text("\n".join(lines) + "\n")
    run(null_model, tmp_path / "in.jsonl", tmp_path / "out", shard_rows=4)
    report, html = saved(tmp_path / "out")
    rows = {kind: [e["row"] for e in examples] for kind, examples in report["error_examples"].items()}
    assert rows == {"null_text": [0, 3, 6], "invalid_json": [2, 5, 8]}
    assert report["counters"]["errors"] == {"null_text": 5, "invalid_json": 5} and report["error_rows"] == 10
    check_figures(html, report)


def test_a_stopped_run_has_no_report_and_the_resumed_one_has_both(null_model: Path, tmp_path: Path) -> None:
    assert run_until_stopped(null_model, {"text": TEXTS}, tmp_path, 8, shard_rows=30)
    assert not list((tmp_path / "_packhorse").glob("report.*"))
    whole = run(null_model, {"text": TEXTS}, tmp_path, shard_rows=30)
    report, html = saved(tmp_path)
    check_figures(html, report)
    assert 0 < report["this_run"]["rows"] < report["rows"] == len(TEXTS)
    assert f'This process computed <span data-key="/this_run/rows" data-value="{whole.this_run.rows}"' in html


def test_a_finished_output_keeps_its_report_and_gets_back_a_page_that_is_gone(null_model: Path, tmp_path: Path) -> None:
    run(null_model, {"text": TEXTS}, tmp_path, shard_rows=90)
    before = saved(tmp_path)
    assert run(null_model, {"text": TEXTS}, tmp_path, shard_rows=90).status == "already_finished"
    assert saved(tmp_path) == before
    (tmp_path / "_packhorse/report.html").unlink()
    run(null_model, {"text": TEXTS}, tmp_path, shard_rows=90)
    assert saved(tmp_path) == before
    (tmp_path / "_packhorse/report.json").unlink()
    run(null_model, {"text": TEXTS}, tmp_path, shard_rows=90)
    report, html = saved(tmp_path)
    assert (report["status"], report["rows"]) == ("already_finished", len(TEXTS))
    check_figures(html, report)


def test_a_report_of_an_earlier_version_gets_a_page_too(null_model: Path, tmp_path: Path) -> None:
    run(null_model, {"text": TEXTS}, tmp_path)
    report, _ = saved(tmp_path)
    known = {"output", "status", "plan", "counters", "this_run", "wall_s", "setup_s", "rows", "rows_per_s", "shards"}
    state = tmp_path / "_packhorse"
    (state / "report.json").write_text(json.dumps({k: v for k, v in report.items() if k in known}))
    (state / "report.html").unlink()
    run(null_model, {"text": TEXTS}, tmp_path)
    after, html = saved(tmp_path)
    assert after["status"] == "finished" and {k: after[k] for k in known} == {k: report[k] for k in known}
    check_figures(html, after)


def test_a_report_that_is_no_json_is_named(null_model: Path, tmp_path: Path) -> None:
    run(null_model, {"text": TEXTS}, tmp_path)
    (tmp_path / "_packhorse/report.json").write_text('{"rows": 3')
    (tmp_path / "_packhorse/report.html").unlink()
    with pytest.raises(DamagedError, match=r"report\.json"):
        run(null_model, {"text": TEXTS}, tmp_path)


def test_records_from_before_lengths_were_counted_still_load(null_model: Path, tmp_path: Path) -> None:
    assert run_until_stopped(null_model, {"text": TEXTS}, tmp_path, 8, shard_rows=30)
    for path in (tmp_path / "_packhorse/shards").glob("*.json"):
        record = unsealed(path.read_bytes())
        newer = ("length_", "host_to_device", "device_to_host", "pinned_")
        record["counters"] = {k: v for k, v in record["counters"].items() if not k.startswith(newer)}
        path.write_bytes(sealed(record))
    report = run(null_model, {"text": TEXTS}, tmp_path, shard_rows=30)
    assert sum(report.counters.length_rows.values()) < report.rows == len(TEXTS)
    check_figures(*reversed(saved(tmp_path)))


def test_cost_is_the_price_of_wall_time_and_set_up(null_model: Path, tmp_path: Path) -> None:
    report = run(null_model, {"text": TEXTS}, tmp_path, price_per_hour=7.2)
    expected = 7.2 * (report.wall_s + report.setup_s) / 3_600
    assert report.cost == pytest.approx(expected)
    assert report.cost_per_million_rows == pytest.approx(expected / len(TEXTS) * 1e6)
    assert run(null_model, {"text": TEXTS}, tmp_path, price_per_hour=3).status == "already_finished"
    manifest = json.loads((tmp_path / "_packhorse/manifest.json").read_bytes())
    assert "price_per_hour" not in json.dumps(manifest)


@pytest.mark.parametrize("price", [0, -1, float("nan"), float("inf")])
def test_a_price_must_be_a_positive_number(null_model: Path, tmp_path: Path, price: float) -> None:
    with pytest.raises(UsageError, match="--price-per-hour"):
        run(null_model, {"text": TEXTS}, tmp_path, price_per_hour=price)
