"""--devices with real models: over processes on this processor, values are those of one process to the bit."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

import packhorse
from packhorse.devices.cores import core_groups
from packhorse.devices.host import cpu_precisions, num_cores
from packhorse.errors import InterruptedRunError, UsageError
from packhorse.executors import process
from packhorse.executors.local import Stop
from packhorse.jobs import dividing
from packhorse.jobs import job as one_job
from packhorse.jobs.spreading import shared
from packhorse.outputs.records import unsealed
from packhorse.plans import Plan
from tests.cpu import reference
from tests.cpu.workers import forked_workers
from tests.models import save_classifier
from tests.null.devices import deadline
from tests.null.runs import AfterLooks, parts
from tests.writers_of_text import CHAT, save_writer
from tests.writers_of_text import texts as prompts

TEXTS = [text for _ in range(3) for text in reference.texts_of_all_lengths(64)]


@pytest.fixture(autouse=True)
def _never_hangs() -> Iterator[None]:
    with deadline(120), forked_workers(process):
        yield


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Matrix products large enough that other batches, or more threads, change the last bits."""
    folder = tmp_path_factory.mktemp("wide")
    return save_classifier(folder, hidden_size=256, intermediate_size=1_024, initializer_range=0.1)


def plan_of(output: Path) -> dict[str, Any]:
    plan: dict[str, Any] = unsealed((output / "_packhorse" / "manifest.json").read_bytes())["plan"]
    return plan


@contextmanager
def one_core() -> Iterator[None]:
    cores, threads = os.sched_getaffinity(0), torch.get_num_threads()
    os.sched_setaffinity(0, {min(cores)})
    yield
    os.sched_setaffinity(0, cores)
    torch.set_num_threads(threads)


PRECISIONS = [p for p in ("bf16", "int8") if p in cpu_precisions()] or ["fp32"]  # fp32 is that of the stopped run below


@pytest.mark.parametrize("precision", PRECISIONS)
def test_values_are_those_of_one_process_to_the_bit(wide: Path, tmp_path: Path, precision: str) -> None:
    rows = {"text": TEXTS, "id": list(range(len(TEXTS)))}
    job = {"precision": precision, "scores": "all", "shard_rows": 60, "max_batch_tokens": 512, "dedup": False}
    packhorse.run(wide, rows, tmp_path / "one", devices="cpu", tune="off", **job)
    report = packhorse.run(wide, rows, tmp_path / "two", devices="cpu:2", tune="off", **job)
    assert parts(tmp_path / "one") == parts(tmp_path / "two")
    assert plan_of(tmp_path / "one") == plan_of(tmp_path / "two")
    assert report.gemm_share is None or report.gemm_share > 0
    assert report.weight_bytes > 0 and len(report.workers) == 2


def test_a_stopped_run_goes_on_over_other_processes_to_the_same_bits(wide: Path, tmp_path: Path) -> None:
    job = {
        "precision": "fp32", "scores": "all", "shard_rows": 30, "max_batch_tokens": 512, "tune": "off",
        "backend": "torch", "dedup": False,
    }  # fmt: skip
    rows = {"text": TEXTS, "id": list(range(len(TEXTS)))}
    packhorse.run(wide, rows, tmp_path / "whole", devices="cpu", **job)
    for devices, looks in (("cpu:2", 8), ("cpu", 9), ("cpu:3", 8)):
        try:
            stop = Stop(AfterLooks(looks), signum=2)
            packhorse.run(wide, rows, tmp_path / "out", devices=devices, stop=stop, **job)
        except InterruptedRunError as error:
            assert error.exit_code == 130
    packhorse.run(wide, rows, tmp_path / "out", devices="cpu", **job)
    assert parts(tmp_path / "out") == parts(tmp_path / "whole")
    assert plan_of(tmp_path / "out") == plan_of(tmp_path / "whole")


def test_what_is_written_on_depends_on_no_process(tmp_path: Path) -> None:
    """A chat, sampled. Threads are part of the plan: as many processes as cores have one each, as one core has."""
    folder = save_writer(tmp_path / "writer", "llama", chat=CHAT)
    rows = {"text": prompts(30), "id": list(range(30))}
    job = {
        "chat": True, "do_sample": True, "temperature": 1.3, "seed": 5, "max_new_tokens": 16, "shard_rows": 7,
        "logprobs": True, "batch_size": 4,
    }  # fmt: skip
    packhorse.run(folder, rows, tmp_path / "many", devices=f"cpu:{max(num_cores(), 2)}", **job)
    many = plan_of(tmp_path / "many")
    assert many["engine"] == "continuous" and many["threads"] == 1
    with one_core():
        packhorse.run(folder, rows, tmp_path / "one", devices="cpu", **job)
    assert plan_of(tmp_path / "one")["threads"] == 1
    assert parts(tmp_path / "one") == parts(tmp_path / "many")


def plan(workers: int, threads: int, device: str = "cpu") -> Plan:
    return Plan(
        task="t", backend="torch", device=device, precision="fp32", attention="sdpa", batching="padded",
        batch_size=None, max_batch_tokens=1, max_length=None, workers=workers, threads=threads, tokenizer="hf",
        text_column="text", pair_column=None,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("workers", "threads", "processes", "expected"),
    [(8, 1, 2, 1), (8, 1, 8, 1), (1, 8, 2, 4), (1, 8, 3, 2), (2, 4, 4, 2), (1, 1, 4, 1), (4, 2, 2, 2)],
)
def test_processes_share_the_threads_of_a_forward_where_each_gets_less_than_one(
    workers: int, threads: int, processes: int, expected: int
) -> None:
    made = shared(plan(workers, threads), processes)
    assert (made.workers, made.threads) == (workers, expected)
    assert shared(plan(1, 8, "cuda"), processes).threads == 8


def test_cores_are_dealt_out_whole_and_once() -> None:
    assert core_groups(num_cores() + 1) is None
    for count in range(1, num_cores() + 1):
        groups = core_groups(count)
        assert groups is not None and len(groups) == count and all(groups)
        assert len({core for group in groups for core in group}) == sum(map(len, groups)) == num_cores()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"devices": "cuda:98,cuda:99"}, "--devices cuda:98"),
        ({"devices": "cpu:2", "device_map": "auto"}, "--devices cpu:2 .*--device-map"),
    ],
)
def test_devices_that_are_not_here_and_one_model_over_all(
    wide: Path, tmp_path: Path, settings: dict[str, Any], words: str
) -> None:
    with pytest.raises(UsageError, match=words):
        packhorse.run(wide, {"text": ["a"]}, tmp_path / "out", **settings)
    assert not (tmp_path / "out" / "_packhorse" / "manifest.json").exists()


@pytest.mark.skipif(num_cores() < 2, reason="one core: there is nothing to divide")
@pytest.mark.parametrize(("gain", "count"), [(0.0, 2), pytest.param(100.0, 0, marks=pytest.mark.slow)])
def test_all_on_a_processor_is_as_many_processes_as_are_faster(
    wide: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gain: float, count: int
) -> None:
    monkeypatch.setattr(dividing, "GAIN", gain)
    monkeypatch.setattr(one_job, "num_to_try", lambda *_: (2, ""))
    settings: dict[str, Any] = {"precision": "fp32", "backend": "torch", "tune": "off", "text_column": "text"}
    packhorse.run(wide, {"text": TEXTS}, tmp_path / "one", devices="cpu", **settings)
    report = packhorse.run(wide, {"text": TEXTS}, tmp_path / "all", devices="all", **settings)
    assert len(report.workers) == count
    assert report.counters.rows == sum(worker["rows"] for worker in report.workers) or not count
    assert parts(tmp_path / "one") == parts(tmp_path / "all")
