"""`packhorse plan`, and plans that are carried out again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import packhorse
from packhorse.errors import UsageError
from packhorse.explanation import Explanation
from tests.cpu import packable
from tests.cpu.command import forked, parts, write_rows

ROWS = 3_000


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    texts = ["good film " * (1 + i % 20) + str(i) for i in range(ROWS)]
    return write_rows(tmp_path_factory.mktemp("rows") / "in.parquet", ROWS, text=texts)


def explain(model: Path, rows: Path, **settings: object) -> Explanation:
    return packhorse.plan(model, rows, text_column="text", devices="cpu", **settings)


def test_nothing_is_run_and_no_weight_is_read(bert: Path, rows: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from packhorse.backends import torch

    def refuse(_request: object) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(torch, "load", refuse)
    found = explain(bert, rows)
    assert found.plan is None and found.forecast.source == "predicted"
    assert found.forecast.rows == ROWS and found.forecast.total_s and found.forecast.total_s > 0
    assert {a.name for a in found.alternatives} >= {"torch fp32"}
    assert all(a.measured_tokens_per_s is None for a in found.alternatives)
    assert [a.status for a in found.alternatives].count("chosen") == 1
    assert all(a.reason for a in found.alternatives if a.status != "chosen")


def test_the_sample_is_described_as_it_is(bert: Path, rows: Path) -> None:
    from packhorse.histogram import by_length

    found = explain(bert, rows)
    assert sum(found.lengths.values()) == found.forecast.sample_rows
    with packhorse.load(bert, devices="cpu") as engine:
        tokenizer = engine._loader.material.tokenizer(None, False)
        texts = ["good film " * (1 + i % 20) + str(i) for i in range(ROWS)]
        lengths = tokenizer.tokenize(texts, None).tokens.lengths
    assert found.forecast.tokens == pytest.approx(int(lengths.sum()), rel=0.03)
    assert set(found.lengths) == set(by_length(lengths))
    assert found.planned_rows == ROWS
    assert found.batches[0].longest == found.longest == lengths.max()
    assert found.batches[-1].number == found.num_batches - 1


def test_rows_and_sequences_are_told_apart(bert: Path, tmp_path: Path) -> None:
    """Each row is three windows: 62 tokens, 62, and the rest of them."""
    from io import StringIO

    from rich.console import Console

    from packhorse.report.plan_text import print_explanation

    rows = write_rows(tmp_path / "in.parquet", 50, text=["good film " * 75] * 50)
    found = explain(bert, rows, long="windows", stride=0)
    assert (found.forecast.sample_rows, found.planned_rows, found.sequences_per_row) == (50, 50, 3.0)
    assert found.forecast.tokens == 50 * (150 + 3 * 2)
    assert sum(found.lengths.values()) == sum(batch.rows for batch in found.batches) == 150
    page = StringIO()
    print_explanation(found, Console(file=page, width=200))
    assert "about 50 rows, 7,800 tokens; 50 rows were looked at" in page.getvalue()
    assert "tokens a sequence" in page.getvalue()
    assert "of a shard of 50 rows, 3.0 sequences each" in page.getvalue()


def test_cost_is_the_price_of_the_predicted_time(bert: Path, rows: Path) -> None:
    found = explain(bert, rows, price_per_hour=36.0)
    assert found.forecast.total_s and found.cost == pytest.approx(found.forecast.total_s / 100)
    assert explain(bert, rows).cost is None


def test_what_tuning_found_is_the_plan_of_the_job(bert: Path, rows: Path, tmp_path: Path) -> None:
    found = explain(bert, rows, tune="full")
    assert found.plan is not None and found.alternatives == found.plan.alternatives
    assert any(a.measured_tokens_per_s for a in found.alternatives)
    packhorse.run(bert, rows, tmp_path / "out", text_column="text", devices="cpu")
    plan = json.loads((tmp_path / "out/_packhorse/manifest.json").read_text())["plan"]
    assert plan["forecast"]["source"] == "cached"
    for name in ("backend", "precision", "max_batch_tokens", "workers", "threads"):
        assert plan[name] == getattr(found.plan, name)


def test_a_plan_is_carried_out_again_to_the_same_bytes(bert: Path, rows: Path, tmp_path: Path) -> None:
    first = tmp_path / "first"
    packhorse.run(bert, rows, first, text_column="text", devices="cpu", precision="bf16", max_batch_tokens=700)
    packhorse.run(bert, rows, tmp_path / "again", text_column="text", plan=str(first / "_packhorse/manifest.json"))
    assert parts(tmp_path / "again") == parts(first)
    plans = [json.loads((f / "_packhorse/manifest.json").read_text())["plan"] for f in (first, tmp_path / "again")]
    assert plans[1]["precision"] == "bf16" and plans[1]["max_batch_tokens"] == 700
    assert plans[0]["accuracy"] == plans[1]["accuracy"]


def test_the_printed_json_is_a_plan_that_run_takes(bert: Path, rows: Path, tmp_path: Path) -> None:
    done = forked("plan", bert, rows, "--text-column", "text", "--devices", "cpu", "--tune", "quick", "--json")
    assert done.returncode == 0, done.stderr
    printed = json.loads(done.stdout)
    (tmp_path / "plan.json").write_text(done.stdout)
    done = forked(
        "run", bert, rows, "-o", f"{tmp_path}/out/", "--text-column", "text", "--plan", tmp_path / "plan.json"
    )
    assert done.returncode == 0, done.stderr
    plan = json.loads((tmp_path / "out/_packhorse/manifest.json").read_text())["plan"]
    assert plan["precision"] == printed["plan"]["precision"]


def test_a_person_sees_lengths_ways_batches_and_time(bert: Path, rows: Path) -> None:
    done = forked("plan", bert, rows, "--text-column", "text", "--devices", "cpu", "--price-per-hour", "2")
    assert done.returncode == 0, done.stderr
    for words in ("tokens a row", "ways", "torch fp32", "batches (packed)", "what it takes", "cost", "3,000 rows"):
        assert words in done.stdout
    assert "█" in done.stdout


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("", "not JSON"), ("[]", "no plan in it"), ('{"plan": null}', "no plan in it"),
        ('{"plan": {"task": "x"}}', "not a plan of packhorse"), (None, "cannot be read"),
    ],
)  # fmt: skip
def test_a_file_that_is_no_plan_is_named_with_what_is(
    bert: Path, rows: Path, tmp_path: Path, content: str | None, says: str
) -> None:
    if content is not None:
        (tmp_path / "p.json").write_text(content)
    with pytest.raises(UsageError, match=f"--plan .*{says}"):
        packhorse.run(bert, rows, tmp_path / "out", text_column="text", plan=str(tmp_path / "p.json"))


def test_a_plan_for_another_task_or_with_a_flag_that_it_decides_is_refused(
    bert: Path, rows: Path, tmp_path: Path
) -> None:
    packhorse.run(bert, rows, tmp_path / "out", text_column="text", devices="cpu", limit=10)
    plan = str(tmp_path / "out/_packhorse/manifest.json")
    with pytest.raises(UsageError, match="for text-classification, and this job does feature-extraction"):
        packhorse.run(bert, rows, tmp_path / "b", text_column="text", task="feature-extraction", plan=plan)
    with pytest.raises(UsageError, match="drop --precision, or --plan"):
        packhorse.run(bert, rows, tmp_path / "c", text_column="text", precision="fp32", plan=plan)
    assert not list(tmp_path.glob("[bc]/part-*"))


def test_a_plan_that_this_model_cannot_carry_out_is_refused(rows: Path, bert: Path, tmp_path: Path) -> None:
    packhorse.run(bert, rows, tmp_path / "out", text_column="text", devices="cpu", limit=10)
    record = json.loads((tmp_path / "out/_packhorse/manifest.json").read_text())["plan"]
    (tmp_path / "p.json").write_text(json.dumps(record | {"attention": "packed", "batching": "packed"}))
    unpackable = packable.without_special_tokens(packable.save(tmp_path / "mpnet", "mpnet"))
    with pytest.raises(UsageError, match=r"--plan .*not possible|--batching packed"):
        packhorse.run(unpackable, rows, tmp_path / "d", text_column="text", plan=str(tmp_path / "p.json"))
