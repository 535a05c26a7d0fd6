"""`packhorse bench` on tiny models: contenders in processes, a failed one as a line, the page against the JSON."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from html.parser import HTMLParser
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from typer.testing import CliRunner

import packhorse
from packhorse.cli import app
from packhorse.comparison import processes
from packhorse.comparison.contenders._loop import pad, sorted_by_budget, sorted_in_batches
from packhorse.comparison.contenders._torch import pool
from packhorse.comparison.contract import ModelSpec
from packhorse.comparison.page import look_up, render
from tests import fork_server
from tests.cpu.command import packhorse as command
from tests.cpu.embedders import edit_json, save_body
from tests.models import WORDS, save_classifier

DEADLINE_S = 500  # against hanging: a process for each contender, each imports torch
CONTENDERS = "tutorial_loop,pipeline_1,dynamic_padding,sorted_torch,unpadded,packhorse"


@pytest.fixture(scope="module", autouse=True)
def _forked_contenders() -> Iterator[None]:
    """A contender's process is a fork: starting it and ending it is tested in tests/null/test_comparison.py."""

    def wait(command: list[str], log: Path, limit_s: float | None) -> int:
        child = fork_server.start([command[-1]], os.environ | {"HF_HUB_OFFLINE": "1"}, "tests.cpu.bench_child")
        log.write_text("".join(child.communicate(limit_s or DEADLINE_S)))
        assert child.returncode is not None
        return child.returncode

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(processes, "_wait", wait)
        yield


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """80 rows of 1 to 20 words, one of them without text."""
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(WORDS, rng.integers(1, 21))) for _ in range(80)]
    path = tmp_path_factory.mktemp("rows") / "rows.parquet"
    pq.write_table(pa.table({"text": [*texts[:40], None, *texts[41:]]}), path)
    return path


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory, rows: Path) -> tuple[dict[str, Any], str, str]:
    """JSON, HTML and output of the command. The model has no padding token, which the tutorial loop cannot do without;
    its label is a tag."""
    folder = tmp_path_factory.mktemp("bench")
    model = save_classifier(folder / "model<b>", initializer_range=0.6)
    edit_json(model / "tokenizer_config.json", pad_token=None)
    files = ("--json", folder / "made" / "x.json", "--html", folder / "made" / "x.html")
    arguments = ("bench", model, rows, "--contenders", CONTENDERS, "--baseline", "pipeline_1", "--rows", 50)
    ran = CliRunner().invoke(app, [*map(str, arguments), *map(str, files)], env={"COLUMNS": "200", "NO_COLOR": "1"})
    assert ran.exit_code == 0, ran.output
    return json.loads((folder / "made" / "x.json").read_text()), (folder / "made" / "x.html").read_text(), ran.stdout


def test_every_contender_is_a_line_and_the_one_that_fails_says_why(done: tuple[dict[str, Any], str, str]) -> None:
    content, _, shown = done
    lines = {line["contender"]: line for line in content["contenders"]}
    assert list(lines) == CONTENDERS.split(",")
    failed = lines.pop("tutorial_loop")
    assert "padding token" in failed["error"]
    assert "Asking to pad but the" in shown  # its last column folds the rest
    for line in lines.values():
        assert not line["error"]
        assert line["num_rows"] == line["num_compared"] == 50
        assert line["max_difference"] < 1e-5
        assert line["ratio"] > 0
        assert line["batch_s"] == pytest.approx(line["num_rows"] / line["rows_per_s"] / line["num_batches"])
        assert min(line["peak_bytes"], line["load_s"], line["tokens_per_s"]) > 0
    assert lines["pipeline_1"]["ratio"] == 1
    assert lines["pipeline_1"]["num_batches"] == 50
    assert lines["dynamic_padding"]["num_batches"] == 2
    assert lines["dynamic_padding"]["padding_efficiency"] < lines["sorted_torch"]["padding_efficiency"] < 1
    assert [lines[name]["padding_efficiency"] for name in ("pipeline_1", "unpadded", "packhorse")] == [1, 1, 1]


def test_the_json_says_what_was_done_and_where(done: tuple[dict[str, Any], str, str]) -> None:
    content, _, _ = done
    settings = content["settings"]
    assert (settings["rows"], settings["input_rows"], settings["left_out_rows"]) == (50, 80, 1)
    assert (settings["source"], settings["baseline"], settings["models"][0]["name"]) == (
        "rows.parquet", "pipeline_1", "model<b>",
    )  # fmt: skip
    assert any("1 rows of the input have no text" in note for note in content["notes"])
    assert content["versions"]["torch"] == metadata.version("torch")
    assert content["machine"]["cores"] >= 1
    assert len(content["trials"]) == len(content["contenders"])
    tokens = {trial["measurement"]["real_tokens"] for trial in content["trials"] if trial["measurement"]}
    assert len(tokens) == 1  # the same rows for all


class _Figures(HTMLParser):
    """Every data-key with its data-value; the text of the page; what a page could load or run."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, Any]] = []
        self.outside: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        named = dict(attrs)
        if "data-key" in named:
            self.found.append((named["data-key"] or "", json.loads(named["data-value"] or "")))
        if tag in ("script", "link", "img", "iframe", "b") or {"src", "href", "onload"} & set(named):
            self.outside.append(tag)


def figures(page: str) -> _Figures:
    parser = _Figures()
    parser.feed(page)
    return parser


def test_every_figure_of_the_page_is_the_jsons(done: tuple[dict[str, Any], str, str]) -> None:
    content, page, _ = done
    seen = figures(page)
    assert len(seen.found) > 80
    assert not seen.outside
    for key, value in seen.found:
        assert look_up(content, key) == value, key
    keys = {key for key, _ in seen.found}
    for number, line in enumerate(content["contenders"]):
        fields = ["error"] if line["error"] else ["rows_per_s", "tokens_per_s", "batch_s", "ratio", "max_difference"]
        assert {f"contenders.{number}.{field}" for field in fields} <= keys


def test_sweeps_are_plotted_from_the_json(done: tuple[dict[str, Any], str, str]) -> None:
    empty = dict.fromkeys(("tokens_per_s", "batch_s", "peak_bytes", "max_difference")) | {"error": ""}
    points = [empty | {"value": 2**i, "rows_per_s": 10.0 * (i + 1), "padding_efficiency": 1 - i / 10} for i in range(3)]
    failed = empty | {"value": 8, "rows_per_s": None, "padding_efficiency": None, "error": "over the limit of 1 s"}
    content = done[0] | {"sweeps": {"batch_size": [*points, failed], "max_length": points[:1]}}
    page = render(content)
    seen = figures(page)
    assert page.count("<polyline") == 2  # rows/s and padding efficiency; one point is no line
    assert all(look_up(content, key) == value for key, value in seen.found)
    line = page.split('<polyline points="')[1].split('"')[0]
    (x0, y0), (x1, y1), (x2, y2) = (map(float, point.split(",")) for point in line.split())
    assert x1 - x0 == pytest.approx(x2 - x1, abs=0.2)
    assert y0 - y1 == pytest.approx(y1 - y2, abs=0.2)  # 10, 20, 30


def test_classifiers_side_by_side(tmp_path: Path, bert: Path, rows: Path) -> None:
    wide = save_classifier(tmp_path / "wide", initializer_range=0.9)
    found = packhorse.bench([bert, bert, wide], rows, rows=40)
    assert not found.contenders
    first, same, other = found.models
    assert not any(line.error for line in found.models)
    assert first.weights_bytes == (bert / "model.safetensors").stat().st_size
    for line in (first, same):
        assert line.agreement is not None
        assert (line.agreement.label_agreement, line.agreement.max_score_difference) == (1, 0)
    assert first.ratio == 1
    with packhorse.load(bert, scores="all") as a, packhorse.load(wide, scores="all") as b:
        texts = [text for text in pq.read_table(rows)["text"].to_pylist() if text is not None]
        drawn = packhorse_rows(texts, rows, 40)
        labels = [engine.predict(drawn)["label"].to_pylist() for engine in (a, b)]
    assert other.agreement is not None
    expected = np.mean([x == y for x, y in zip(*labels, strict=True)])
    assert other.agreement.label_agreement == pytest.approx(expected)
    assert figures(render(found.to_dict())).found


def packhorse_rows(texts: list[str], path: Path, count: int) -> list[str]:
    """The rows that bench draws, checked to be rows of the file."""
    from packhorse.comparison.rows import sample_input

    drawn = sample_input(path, None, count).texts
    assert set(drawn) <= set(texts)
    return drawn


def test_embedding_models_side_by_side_and_one_that_cannot_run(tmp_path: Path, encoder: Path) -> None:
    broken = save_body(tmp_path / "broken")
    (broken / "model.safetensors").write_bytes(b"not weights")
    found = packhorse.bench([encoder, encoder, broken], rows=30)
    assert found.settings["source"] == "synthetic"
    same, failed = found.models[1:]
    assert same.agreement is not None
    assert same.agreement.rank_correlation == pytest.approx(1)
    assert same.agreement.mean_cosine == pytest.approx(1, abs=1e-6)
    assert failed.error
    assert failed.rows_per_s is None


def test_a_missing_model_is_an_error_of_usage(tmp_path: Path) -> None:
    ran = command("bench", tmp_path / "nothing")
    assert ran.returncode == 2
    assert "there is no such folder" in ran.stderr
    ran = command("bench", tmp_path, "--json", "/proc/nothing/x.json")
    assert ran.returncode == 2
    assert "--json /proc/nothing/x.json: cannot be written" in ran.stderr


def test_plans_hold_every_row_once_and_keep_to_their_sizes() -> None:
    lengths = np.random.default_rng(0).integers(1, 60, 500)
    for batches in (sorted_in_batches(lengths, 32), sorted_by_budget(lengths, 256)):
        assert sorted(np.concatenate(batches).tolist()) == list(range(500))
        assert all(np.diff(lengths[np.concatenate(batches)]) <= 0)
    assert all(lengths[batch].max() * len(batch) <= 256 for batch in sorted_by_budget(lengths, 256))
    assert max(map(len, sorted_in_batches(lengths, 32))) == 32
    padded = pad([[5, 6], [7, 8, 9]], 3)
    assert padded["input_ids"].tolist() == [[5, 6, 3], [7, 8, 9]]
    assert padded["attention_mask"].tolist() == [[1, 1, 0], [1, 1, 1]]


@pytest.mark.parametrize("mode", ["mean", "cls", "last", "max"])
def test_pooling_of_a_padded_row_is_that_of_the_row_alone(mode: str) -> None:
    spec = ModelSpec.model_validate(
        {"name": "e", "folder": ".", "task": "embedding", "max_length": 8, "pooling": mode, "normalize": True}
    )
    hidden = torch.randn(2, 5, 4)
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
    alone = {"mean": hidden[0, :3].mean(0), "cls": hidden[0, 0], "last": hidden[0, 2], "max": hidden[0, :3].amax(0)}
    expected = alone[mode] / alone[mode].norm()
    torch.testing.assert_close(pool(spec, hidden, mask)[0], expected)


@pytest.mark.slow
def test_full_sweeps_and_the_other_engines(encoder: Path, rows: Path) -> None:
    names = (
        "pipeline_32,onnx_runtime,openvino_runtime:int8,sentence_transformers_32,compiled_padding,dynamic_padding:int8"
    )
    found = packhorse.bench(encoder, rows, rows=40, levels="full", contenders=names, time_limit=300)
    assert {line.contender: line.error for line in found.contenders if line.error} == {}
    sizes, lengths = found.sweeps["batch_size"], found.sweeps["max_length"]
    assert [point.value for point in sizes] == [1, 2, 4, 8, 16, 32, 64, 128, 256]
    assert [point.value for point in lengths] == [64]
    efficiencies = [point.padding_efficiency for point in sizes if point.padding_efficiency]
    assert efficiencies[0] == 1
    assert efficiencies == sorted(efficiencies, reverse=True)
    assert figures(render(found.to_dict())).found
