"""The report of a run of a real model on the processor: its page, and what its FLOPs are held against."""

from __future__ import annotations

import json
from pathlib import Path

import packhorse
from tests.null.report_page import check_figures

WORDS = ["a good film", "it was very long and not well made", "the end", "sad"]


def test_the_page_of_a_padded_run_holds_flops_and_padding(bert: Path, tmp_path: Path) -> None:
    rows = {"text": [WORDS[i % 4] + f" {i}" * (i % 7) for i in range(300)]}
    packhorse.run(bert, rows, tmp_path, devices="cpu", precision="fp32", attention="sdpa", max_batch_tokens=512,
                  shard_rows=100)  # fmt: skip
    state = tmp_path / "_packhorse"
    report = json.loads((state / "report.json").read_bytes())
    page = check_figures((state / "report.html").read_text(encoding="utf-8"), report)
    assert report["this_run"]["flops"] > 0
    assert {"/flops_per_s", "/device_flops_per_s"} <= {figure.key for figure in page.figures}
    counters = report["counters"]
    assert sum(counters["length_tokens"].values()) == counters["real_tokens"] < counters["computed_tokens"]
    assert sum(counters["length_computed"].values()) == counters["computed_tokens"]
    config = json.loads((bert / "config.json").read_text())
    values = 20 * config["num_hidden_layers"] * config["hidden_size"]
    assert report["activation_bytes_per_token"] == 4 * values


def test_a_packed_run_computes_no_padding_at_any_length(bert: Path, tmp_path: Path) -> None:
    rows = {"text": [WORDS[i % 4] + f" {i}" * (i % 7) for i in range(100)]}
    report = packhorse.run(bert, rows, tmp_path, devices="cpu", precision="fp32", batching="packed")
    assert report.plan["batching"] == "packed"
    assert all(bucket["real_tokens"] == bucket["computed_tokens"] for bucket in report.lengths)
