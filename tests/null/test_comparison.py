"""What `packhorse bench` decides without a model: rows, contenders, parity, agreement, processes, figures. No torch."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy import stats

import packhorse
from packhorse.comparison.agreement import agreement, mean_ranks, spearman
from packhorse.comparison.contract import Job, Measurement, ModelSpec
from packhorse.comparison.discover import contender_names, parse_contender
from packhorse.comparison.levers import contenders_of, lengths_to_sweep
from packhorse.comparison.page import figure, look_up
from packhorse.comparison.parity import Parity, Tolerances, compare
from packhorse.comparison.processes import ChildError, run_child
from packhorse.comparison.rows import sample_input, synthetic_texts, vocabulary_words, write_rows
from packhorse.comparison.summary import summarize
from packhorse.comparison.trials import Trial
from packhorse.errors import UsageError
from tests.models import WORDS, save_null_model

CLASSIFIER = ModelSpec(
    name="m", folder=Path(), task="text-classification", max_length=8, labels=("bad", "good", "so-so")
)
EMBEDDER = ModelSpec(name="e", folder=Path(), task="embedding", max_length=8, pooling="mean")


def test_rows_are_drawn_evenly_in_order_and_again_the_same(tmp_path: Path) -> None:
    texts = [None if row % 10 == 0 else f"row {row}" for row in range(50_000)]
    pq.write_table(pa.table({"text": texts}), tmp_path / "rows.parquet", row_group_size=7_000)
    drawn = sample_input(tmp_path / "rows.parquet", None, 1_000)
    numbers = [int(text.split()[1]) for text in drawn.texts]
    assert numbers == sorted(set(numbers))
    assert len(numbers) == 1_000
    counts, _ = np.histogram(numbers, bins=5, range=(0, 50_000))
    assert stats.chisquare(counts).pvalue > 1e-4  # every fifth of the input has its share
    assert (drawn.seen_rows, drawn.left_out_rows, drawn.source) == (50_000, 5_000, "rows.parquet")
    in_memory = sample_input(pa.table({"text": texts}), None, 1_000)  # other chunks, the same rows
    assert in_memory.texts == drawn.texts == sample_input(tmp_path / "rows.parquet", None, 1_000).texts


def test_an_input_without_text_is_an_error(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": pa.array([None, None], pa.string())}), tmp_path / "rows.parquet")
    with pytest.raises(UsageError, match="no text in 2 rows of column text"):
        sample_input(tmp_path / "rows.parquet", None, 10)


def test_synthetic_rows_are_words_of_the_model_and_lengths_vary(tmp_path: Path) -> None:
    words = vocabulary_words(save_null_model(tmp_path / "model"))
    assert words == [word for word in WORDS if len(word) > 1]
    counts = np.array([len(text.split()) for text in synthetic_texts(words, 2_000)])
    assert 22 <= np.median(counts) <= 26  # log-normal, median 24
    assert counts.max() > 5 * np.median(counts)
    (tmp_path / "model" / "tokenizer.json").unlink()
    with pytest.raises(UsageError, match="give INPUT"):
        vocabulary_words(tmp_path / "model")


@pytest.mark.parametrize(
    ("label", "words"),
    [
        ("sorted_torhc", "tutorial_loop.*did you mean 'sorted_torch'"),
        ("pipeline_1:int8", "pipeline_1 takes fp32, bf16"),
        ("pipeline_1:8", "at most one of a kind"),
        ("packhorse:onnx:openvino", "at most one of a kind"),
        ("dynamic_padding:8:16", "a number of rows a batch"),
        ("dynamic_padding:0", "a number of rows a batch"),
        ("sentence_transformers_32", "does embedding; this model is for text-classification"),
    ],
)
def test_a_label_that_cannot_be_meant(label: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        parse_contender(label, "text-classification")


def test_labels_are_read_and_written_alike() -> None:
    for label in ("packhorse:onnx:int8", "packhorse:auto", "packhorse:torch:packed:bf16", "dynamic_padding:64:bf16"):
        assert parse_contender(label, "embedding").label == label
    assert parse_contender("packhorse:auto", "embedding").precision == "auto"
    assert parse_contender("dynamic_padding:64", "embedding").batch_size == 64


def test_importing_every_contender_loads_no_torch() -> None:
    code = (
        "import sys; from packhorse.comparison.discover import *\n"
        "[contender_module(name) for name in contender_names()]\n"
        "import packhorse.comparison.compare, packhorse.cli.bench, packhorse.comparison.table\n"
        "assert not {'torch', 'transformers', 'onnxruntime', 'openvino'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    assert {"tutorial_loop", "packhorse"} <= set(contender_names())


def test_full_has_what_quick_has_and_only_contenders_of_the_task() -> None:
    for task in ("text-classification", "embedding"):
        quick, full = ([c.label for c in contenders_of(levels, task)] for levels in ("quick", "full"))
        assert set(quick) < set(full)
        assert any(label.startswith("compiled") for label in full)
        assert not any(label.startswith("compiled") for label in quick)
        assert ("sentence_transformers_32" in quick) == (task == "embedding")
    assert lengths_to_sweep(300) == [128, 256, 300]
    assert lengths_to_sweep(64) == [64]


def test_a_package_that_is_missing_is_told_before_a_process_starts() -> None:
    contender = parse_contender("onnx_runtime", "embedding")
    contender.module.NEEDS, needs = ("no_such_package",), contender.module.NEEDS
    try:
        assert contender.missing == "no_such_package is not installed: pip install no-such-package"
    finally:
        contender.module.NEEDS = needs


def test_parity_decides_over_the_ratio() -> None:
    reference = np.array([[0.9, 0.1], [0.2, 0.8]], np.float32)
    good = compare(reference + 1e-6, reference, "text-classification", "fp32", Tolerances())
    bad = compare(reference[:, ::-1], reference, "text-classification", "fp32", Tolerances())
    assert good.matches
    assert not bad.matches
    trials = [
        _trial("pipeline_32", good, run_s=4),
        _trial("sorted_torch", good, run_s=2),
        _trial("tutorial_loop", bad, run_s=1),
        Trial(parse_contender("pipeline_1", "embedding"), 1, error="over the limit of 1 s"),
    ]
    base, quick, wrong, failed = summarize(trials, "pipeline_32")
    assert (base.ratio, quick.ratio, wrong.ratio, failed.ratio) == (1.0, 2.0, None, None)
    assert "2 of 2 labels" in wrong.no_ratio_because
    assert failed.error == "over the limit of 1 s"
    assert quick.batch_s == pytest.approx(0.5)  # 2 s, 4 batches


def _trial(label: str, parity: Parity, run_s: float) -> Trial:
    measurement = Measurement(
        num_rows=8, run_s=run_s, load_s=1, wall_s=run_s + 1, peak_bytes=1, real_tokens=80, computed_tokens=100,
        padding_efficiency=0.8, num_batches=4,
    )  # fmt: skip
    return Trial(parse_contender(label, "embedding"), 1, measurement, parity)


def test_spearman_is_scipys() -> None:
    rng = np.random.default_rng(0)
    for first, second in [rng.normal(size=(2, 50)), rng.integers(0, 5, (2, 80))]:
        assert mean_ranks(first) == pytest.approx(stats.rankdata(first))
        assert spearman(first, second) == pytest.approx(stats.spearmanr(first, second).statistic)
    assert spearman(np.ones(5), np.arange(5)) is None
    assert spearman(np.ones(1), np.ones(1)) is None


def test_a_model_agrees_with_itself() -> None:
    rng = np.random.default_rng(0)
    scores, vectors = rng.dirichlet(np.ones(3), 40), rng.normal(size=(300, 16))
    same = agreement(scores, scores, CLASSIFIER, CLASSIFIER)
    assert (same.label_agreement, same.mean_score_difference, same.max_score_difference) == (1, 0, 0)
    near = agreement(vectors, vectors, EMBEDDER, EMBEDDER)
    assert near.rank_correlation == pytest.approx(1)
    assert near.mean_cosine == pytest.approx(1)
    assert near.num_pairs == 256 * 255 // 2


def test_labels_are_matched_by_name() -> None:
    rng = np.random.default_rng(0)
    scores = rng.dirichlet(np.ones(3), 40)
    turned = CLASSIFIER.model_copy(update={"labels": ("so-so", "bad", "good")})
    assert agreement(scores, scores[:, [2, 0, 1]], CLASSIFIER, turned).label_agreement == 1
    other = CLASSIFIER.model_copy(update={"labels": ("a", "b", "c")})
    assert "a, b, c" in agreement(scores, scores, CLASSIFIER, other).reason


def test_embeddings_of_other_dimensions_are_compared_by_who_is_near_whom() -> None:
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(60, 16))
    rotation, _ = np.linalg.qr(rng.normal(size=(32, 32)))
    wide = np.concatenate([vectors, np.zeros((60, 16))], axis=1) @ rotation  # the same similarities, other numbers
    agreed = agreement(vectors, wide, EMBEDDER, EMBEDDER)
    assert agreed.rank_correlation == pytest.approx(1)
    assert agreed.mean_cosine is None
    unrelated = agreement(vectors, rng.normal(size=(60, 8)), EMBEDDER, EMBEDDER)
    assert abs(unrelated.rank_correlation or 1) < 0.2


SLEEPER = """
import subprocess, sys, time
from pathlib import Path
def run(model, rows, options):
    grandchild = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    (options.work_dir / "pids").write_text(f"{__import__('os').getpid()} {grandchild.pid}")
    time.sleep(600)
"""


def _sleeper_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit_s: float | None) -> Job:
    (tmp_path / "sleeper.py").write_text(SLEEPER)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    rows_file = write_rows(tmp_path / "rows.parquet", ["a"], [0])
    options = parse_contender("packhorse", "embedding").options(1, tmp_path, limit_s)
    return Job(module="sleeper", model=EMBEDDER, rows_file=rows_file, options=options)


def _all_gone(pids: list[int]) -> bool:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        alive = [pid for pid in pids if psutil.pid_exists(pid) and psutil.Process(pid).status() != "zombie"]
        if not alive:
            return True
        time.sleep(0.05)
    return False


def test_over_the_limit_ends_the_contender_and_all_it_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ChildError, match="over the limit of 6 s"):
        run_child(_sleeper_job(tmp_path, monkeypatch, 6), tmp_path)
    assert _all_gone([int(pid) for pid in (tmp_path / "pids").read_text().split()])


def test_contenders_die_with_a_bench_that_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job_file = tmp_path / "told.json"
    job_file.write_text(_sleeper_job(tmp_path, monkeypatch, None).model_dump_json())
    code = (
        "import sys; from pathlib import Path; from packhorse.comparison.contract import Job\n"
        "from packhorse.comparison.processes import run_child\n"
        "run_child(Job.model_validate_json(Path(sys.argv[1]).read_text()), Path(sys.argv[2]))"
    )
    parent = subprocess.Popen([sys.executable, "-c", code, str(job_file), str(tmp_path)], env=os.environ)
    deadline = time.monotonic() + 60
    while not (tmp_path / "pids").is_file() or not (tmp_path / "pids").read_text():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    parent.kill()
    parent.wait()
    assert _all_gone([int(pid) for pid in (tmp_path / "pids").read_text().split()])


def test_a_failed_child_is_told_by_its_last_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = _sleeper_job(tmp_path, monkeypatch, None)
    (tmp_path / "sleeper.py").write_text("def run(*_):\n    raise ValueError('no such layer')\n")
    with pytest.raises(ChildError, match="ValueError: no such layer"):
        run_child(job, tmp_path)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"rows": 0}, "--rows 0"),
        ({"repeat": 0}, "--repeat 0"),
        ({"time_limit": 0}, "--time-limit 0"),
        ({"slow_rows": -1}, "--slow-rows -1"),
        ({"contenders": ""}, "--contenders ''"),
        ({"contenders": "pipelin_32"}, "did you mean 'pipeline_32'"),
        ({"contenders": "pipeline_1", "baseline": "pipeline_32"}, "--baseline pipeline_32: not among the contenders"),
        ({"text_column": "text"}, "--text-column text: belongs to an INPUT"),
        ({"max_length": 100_000}, "--max-length 100000: the model takes at most 64"),
        ({"speed": 1}, "unknown setting 'speed'"),
    ],
)
def test_usage_errors_name_the_flag(null_model: Path, settings: dict[str, object], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        packhorse.bench(null_model, **settings)


def test_models_that_are_not_there_or_do_something_else(tmp_path: Path, null_model: Path) -> None:
    with pytest.raises(UsageError, match="bench needs a model"):
        packhorse.bench([])
    with pytest.raises(UsageError, match="there is no such folder"):
        packhorse.bench(tmp_path / "nothing")
    embedder = save_null_model(tmp_path / "body", architecture="BertModel")
    with pytest.raises(UsageError, match="--model body: does embedding"):
        packhorse.bench([null_model, embedder])


def test_a_figure_names_its_place_and_escapes_its_text() -> None:
    content = {"models": [{"name": '<script>"&'}], "rate": 1234.5, "none": None}
    assert look_up(content, "models.0.name") == '<script>"&'
    shown = str(figure(content, "models.0.name", "text"))
    assert "<script>" not in shown
    assert "&lt;script&gt;" in shown
    assert str(figure(content, "rate", "rate")) == '<span data-key="rate" data-value="1234.5">1,234</span>'
    assert ">–<" in str(figure(content, "none", "rate"))
    with pytest.raises(KeyError):
        look_up(content, "speed")
