"""--devices on GPUs: over processes, values are those of one process to the bit; one GPU may be named twice."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import packhorse
from tests.cpu import reference
from tests.models import save_classifier
from tests.null.devices import deadline, workers_of
from tests.null.runs import parts, run_until_stopped
from tests.writers_of_text import save_writer
from tests.writers_of_text import texts as prompts

TEXTS = [text for _ in range(6) for text in reference.texts_of_all_lengths(64)]


@pytest.fixture(autouse=True)
def _never_hangs() -> Iterator[None]:
    with deadline(240):
        yield
    assert not workers_of()


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wide")
    return save_classifier(folder, hidden_size=256, intermediate_size=1_024, initializer_range=0.1)


@pytest.mark.parametrize("devices", ["cuda:0,cuda:0", "all", "0,0,0"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_values_are_those_of_one_process(wide: Path, tmp_path: Path, devices: str, precision: str) -> None:
    job: dict[str, Any] = {"precision": precision, "tune": "off", "scores": "all", "shard_rows": 60, "dedup": False}
    rows = {"text": TEXTS}
    packhorse.run(wide, rows, tmp_path / "one", devices="cuda:0", **job)
    report = packhorse.run(wide, rows, tmp_path / "many", devices=devices, **job)
    assert parts(tmp_path / "one") == parts(tmp_path / "many")
    expected = torch.cuda.device_count() if devices == "all" else devices.count(",") + 1
    assert len(report.workers) == (expected if expected > 1 else 0)
    assert report.device_peak_bytes


def test_memory_of_the_first_device_is_given_back_before_the_workers_load(wide: Path, tmp_path: Path) -> None:
    packhorse.run(wide, {"text": TEXTS}, tmp_path / "out", devices="cuda:0,cuda:0", tune="off")
    assert torch.cuda.memory_allocated(0) == 0


def test_generation_over_two_processes(tmp_path: Path) -> None:
    folder = save_writer(tmp_path / "writer", "llama")
    job: dict[str, Any] = {"max_new_tokens": 12, "shard_rows": 9, "do_sample": True, "seed": 3, "batch_size": 4}
    rows = {"text": prompts(40)}
    packhorse.run(folder, rows, tmp_path / "one", devices="cuda:0", **job)
    packhorse.run(folder, rows, tmp_path / "two", devices="cuda:0,cuda:0", **job)
    assert parts(tmp_path / "one") == parts(tmp_path / "two")


def test_stops_of_null_runs_leave_no_process(null_model: Path, tmp_path: Path) -> None:
    run_until_stopped(null_model, {"text": TEXTS}, tmp_path / "out", 5, devices="cuda:0,cuda:0", shard_rows=20)
