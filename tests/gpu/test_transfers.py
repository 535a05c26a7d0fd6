"""Copies of a real job on a GPU: how many, how large, pinned, and part of the forward lane's time."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import packhorse
from packhorse.backends.torch.transfers import Accelerator, Staging
from tests.cpu import packable

TEXTS = packable.texts()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return packable.save(tmp_path_factory.mktemp("model"), "bert")


@pytest.mark.parametrize("attention", ["sdpa", "packed"])
def test_a_batch_is_one_pinned_copy_in_and_one_out(folder: Path, tmp_path: Path, attention: str) -> None:
    rows = {"text": TEXTS * 200}
    report = packhorse.run(folder, rows, tmp_path, devices="cuda", precision="bf16", attention=attention,
                           max_batch_tokens=2_048, dedup=False)  # fmt: skip
    done = report.this_run
    assert done.host_to_device_count == done.device_to_host_count == done.batches > 10
    assert done.device_to_host_bytes == len(rows["text"]) * 4 * report_width(folder)
    assert done.host_to_device_bytes >= 2 * 8 * done.real_tokens
    assert report.pinned_share == 1 and 0 < done.transfer_s < done.compute_s
    stages = {stage["name"]: stage["seconds"] for stage in report.lanes[1]["stages"]}
    stages.pop("other")
    assert sum(stages.values()) == pytest.approx(report.wall_s, rel=0.05)


def report_width(folder: Path) -> int:
    with packhorse.load(folder, devices="cpu", scores="all") as engine:
        return len(engine.predict(["a"])["scores"][0])


def test_buffers_in_flight_keep_what_was_staged() -> None:
    """Copies queued behind a long kernel, so that none has begun when the next buffer is filled."""
    staging = Staging(Accelerator("cuda"))
    big = torch.randn(8_192, 8_192, device="cuda")
    landings = []
    for value in range(8):
        _ = big @ big
        crossing = staging.crossing()
        arrived = crossing.to_device({"ids": np.full(50_000, value), "starts": np.full(3, value, np.int32)})
        landings.append(crossing.to_host((arrived["ids"].float() + arrived["starts"][0]).view(-1, 5)))
    for value, landing in enumerate(landings):
        np.testing.assert_array_equal(landing.numpy(), np.full((10_000, 5), 2.0 * value, np.float32))
        assert landing.transfers.transfer_s > 0


def test_nothing_is_waited_for_before_the_values_are_asked_for() -> None:
    staging = Staging(Accelerator("cuda"))
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        crossing = staging.crossing()
        arrived = crossing.to_device({"ids": np.arange(100)})
        landing = crossing.to_host(arrived["ids"].float().view(10, 10))
    finally:
        torch.cuda.set_sync_debug_mode(before)
    np.testing.assert_array_equal(landing.numpy(), np.arange(100, dtype=np.float32).reshape(10, 10))
