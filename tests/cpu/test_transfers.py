"""Copies to a device and back, on a made-up device whose memory is the host's and whose events a test lets pass."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

import packhorse
from packhorse.backends.null import NullModel
from packhorse.backends.torch.layouts import Packed, Padded
from packhorse.backends.torch.reduce import Reducer
from packhorse.backends.torch.transfers import Landing, Plain, Staging
from packhorse.counters import Counters, Transfers
from packhorse.data import Batch, Reduction, Tokens, offsets_of
from packhorse.forwarding import run_batches
from packhorse.metrics import RunReport
from packhorse.packing import attention as packed_attention
from packhorse.plans import Plan
from packhorse.report.html import render
from packhorse.report.text import summary_lines
from packhorse.shard import Budget, prepare
from tests.null.report_page import check_figures
from tests.null.stages import rows_of_texts, stages

MS_A_COPY = 2.0


@dataclass
class FakeEvent:
    device: FakeDevice
    number: int

    def query(self) -> bool:
        return self.number < self.device.passed

    def synchronize(self) -> None:
        self.device.passed = max(self.device.passed, self.number + 1)

    def elapsed_time(self, end_event: Any) -> float:
        assert self.query() and end_event.query(), "CUDA raises where an event has not passed"
        return MS_A_COPY * (end_event.number - self.number)


@dataclass
class FakeDevice:
    """passed: so many of its events are behind it."""

    name: str = "cpu"
    is_pinned: bool = True
    passed: int = 0
    marked: int = 0
    buffers: list[torch.Tensor] = field(default_factory=list)

    def buffer(self, num_bytes: int) -> torch.Tensor:
        self.buffers.append(torch.empty(num_bytes, dtype=torch.uint8))
        return self.buffers[-1]

    def mark(self) -> FakeEvent:
        self.marked += 1
        return FakeEvent(self, self.marked - 1)


ARRAYS: dict[str, np.ndarray] = {
    "ids": np.arange(7, dtype=np.int64).reshape(1, 7), "starts": np.arange(3, dtype=np.int32) - 1,
    "columns": np.arange(12, dtype=np.int64).reshape(3, 4).T, "scale": np.array([0.5, -2.0], np.float32),
}  # fmt: skip


@pytest.mark.parametrize("is_pinned, apart", [(True, False), (True, True), (False, False)])
def test_arrays_arrive_as_they_are(is_pinned: bool, apart: bool) -> None:
    moved = Staging(FakeDevice(is_pinned=is_pinned)).crossing().to_device(ARRAYS, apart)
    assert list(moved) == list(ARRAYS)
    for name, array in ARRAYS.items():
        found = moved[name].numpy()
        assert found.dtype == array.dtype
        np.testing.assert_array_equal(found, array)


def test_shapes_and_types_hold_on_a_device_without_the_hosts_memory() -> None:
    moved = Staging(FakeDevice("meta")).crossing().to_device(ARRAYS)
    for name, array in ARRAYS.items():
        assert moved[name].device.type == "meta"
        assert (moved[name].shape, moved[name].dtype) == (array.shape, torch.from_numpy(array).dtype)


def test_a_buffer_is_used_again_once_its_event_has_passed_and_not_before() -> None:
    device = FakeDevice()
    staging = Staging(device)
    first = staging.crossing().to_device({"ids": np.full(100, 1)})
    staging.crossing().to_device({"ids": np.full(100, 2)})
    assert len(device.buffers) == 2  # the first may still be read
    device.passed = device.marked
    for value in (3, 4):
        staging.crossing().to_device({"ids": np.full(100, value)})
    assert len(device.buffers) == 2
    staging.crossing().to_device({"ids": np.full(100, 5)})
    assert len(device.buffers) == 3
    assert first["ids"].tolist() == [1] * 100
    staging.crossing().to_device({"ids": np.full(10_000, 6)})
    assert len(device.buffers[-1]) == 131_072  # 80,000 bytes: the next power of two


def test_values_are_the_callers_own_and_their_buffer_goes_back() -> None:
    device = FakeDevice()
    staging = Staging(device)
    values = torch.arange(6, dtype=torch.float32).view(3, 2)
    first = staging.crossing().to_host(values)
    second = staging.crossing().to_host(values + 10)
    assert len(device.buffers) == 2
    kept = first.numpy()
    staging.crossing().to_host(values + 20)
    assert len(device.buffers) == 2
    np.testing.assert_array_equal(kept, values.numpy())
    assert first.numpy() is kept
    np.testing.assert_array_equal(second.numpy(), values.numpy() + 10)


def test_copies_are_counted_and_timed_by_the_devices_events() -> None:
    device = FakeDevice()
    crossing = Staging(device).crossing()
    crossing.to_device({"ids": np.zeros(9, np.int64), "starts": np.zeros(3, np.int32)})  # 72 bytes, to 128, and 12
    landing = crossing.to_host(torch.zeros(4, 2))
    assert landing.transfers == Transfers() and device.passed == 0  # nothing was waited for
    landing.numpy()
    assert landing.transfers == Transfers(1, 140, 1, 32, 172, transfer_s=2 * MS_A_COPY / 1_000)


def test_copies_without_pinned_memory_are_counted_one_by_one() -> None:
    crossing = Staging(FakeDevice(is_pinned=False)).crossing()
    crossing.to_device({"ids": np.zeros(9, np.int64), "starts": np.zeros(3, np.int32)})
    landing = crossing.to_host(torch.zeros(4, 2))
    landing.numpy()
    assert landing.transfers == Transfers(2, 84, 1, 32, 0, transfer_s=3 * MS_A_COPY / 1_000)


def test_values_of_inference_mode_land_in_a_buffer_from_outside_and_back() -> None:
    staging = Staging(FakeDevice())
    with torch.inference_mode():
        crossing = staging.crossing()
        crossing.to_device({"ids": np.zeros(9, np.int64)})
        crossing.to_host(torch.ones(2, 2)).numpy()
    landing = staging.crossing().to_host(torch.ones(2, 2) * 3)
    assert landing.numpy().tolist() == [[3, 3], [3, 3]]


# -- layouts

LENGTHS = np.array([5, 17, 5, 30, 1])
ROWS = Tokens(np.random.default_rng(0).integers(3, 50, LENGTHS.sum()).astype(np.int32), offsets_of(LENGTHS))


@pytest.mark.parametrize("layout", ["padded", "packed"])
def test_a_forward_is_one_copy_in_and_one_out_and_gives_the_same(layout: str, bert: Path) -> None:
    model = transformers.AutoModelForSequenceClassification.from_pretrained(bert).eval()
    reducer = Reducer(Reduction("classify", 3, "softmax"), "cpu")
    made: Padded | Packed = Padded(model, reducer, "cpu", "sdpa")
    if layout == "packed":
        packed_attention.register()
        model.set_attn_implementation(packed_attention.NAME)
        made = Packed(model, reducer, "cpu", "first", "auto")
    batch, crossing = Batch(ROWS), Staging(FakeDevice()).crossing()
    landing = crossing.to_host(made(batch, crossing))
    np.testing.assert_array_equal(landing.numpy(), made(batch, Plain("cpu")).numpy())
    transfers = landing.transfers
    assert (transfers.host_to_device_count, transfers.device_to_host_count) == (1, 1)
    assert transfers.device_to_host_bytes == 5 * 3 * 4
    per_token = 58 * 2 * 8 if layout == "packed" else 5 * 30 * 2 * 8  # ids and positions, ids and mask
    assert per_token + 5 * 8 <= transfers.host_to_device_bytes < per_token + 5 * 8 + 6 * 4 + 4 * 64


# -- a shard and its report


class Copying(NullModel):
    """The null model with its batches' ids copied to a device, and its values back."""

    staging: Staging

    def forward(self, batch: Batch) -> Landing:  # type: ignore[override]
        crossing = self.staging.crossing()
        crossing.to_device({"ids": batch.tokens.ids})
        return crossing.to_host(torch.from_numpy(super().forward(batch).numpy()))


def counted(texts: list[str]) -> tuple[Counters, int]:
    """Of a shard, and the bytes of its ids."""
    made = stages()
    prepared = prepare(rows_of_texts(texts), made, Budget(64, None))
    model = Copying(made.task.reduction())
    model.staging = Staging(FakeDevice())
    run_batches(prepared.tokenized.tokens, prepared.unique, prepared.plan, model, lambda *_: None, prepared.counters)
    return prepared.counters, prepared.counters.real_tokens * 4


def test_a_shards_copies_are_counted_and_its_seconds_are_not_kept() -> None:
    texts = [f"a {'b ' * (i % 9)}{i}" for i in range(60)]
    counters, num_bytes = counted(texts)
    assert counters.host_to_device_count == counters.device_to_host_count == counters.batches > 3
    assert counters.host_to_device_bytes == num_bytes
    assert counters.transfer_s == pytest.approx(2 * counters.batches * MS_A_COPY / 1_000)
    kept = counters.deterministic()
    assert kept == counted(texts)[0].deterministic() and "transfer_s" not in kept
    total = Counters(**kept)
    total += counters
    assert total.pinned_bytes == 2 * counters.pinned_bytes > 0


def test_the_report_tells_copies_beside_computing() -> None:
    counters = Counters(rows=9, real_tokens=90, computed_tokens=90, batches=2, flops=7e9, compute_s=4.0)
    counters.transferred(Transfers(1_204, 12_300_000, 1_204, 1_200_000, 13_500_000, 0.5))
    plan = Plan(
        task="text-classification", backend="torch", device="cuda:0", precision="bf16", attention="packed",
        batching="packed", batch_size=None, max_batch_tokens=64, max_length=64, workers=1, threads=1, tokenizer="hf",
        text_column="text", pair_column=None,
    )  # fmt: skip
    report = RunReport(
        "out", "finished", plan.model_dump(mode="json"), counters, counters, wall_s=5.0, wait_input_s=0.9, shards=1
    )
    stages = {stage["name"]: stage["seconds"] for stage in report.lanes[1]["stages"]}
    assert stages == pytest.approx(
        {"compute": 3.5, "transfer": 0.5, "wait for input": 0.9, "wait for output": 0.0, "other": 0.1}
    )
    assert report.device_busy_share == pytest.approx(0.7) and report.device_flops_per_s == pytest.approx(2e9)
    line = "  transfers   1,204 copies in (12.3 MB, pinned), 1,204 out (1.2 MB), 0.50 s of the device's time"
    assert line in summary_lines(report)
    page = check_figures(render(report.to_dict()), report.to_dict())
    keys = {figure.key for figure in page.figures}
    assert {"/this_run/host_to_device_count", "/this_run/transfer_s", "/pinned_share"} <= keys


def test_a_device_whose_copies_nobody_counts_is_not_said_to_have_none() -> None:
    counters = Counters(rows=9, generated_tokens=3)
    report = RunReport("out", "finished", {"device": "cuda:0"}, counters, counters, wall_s=5.0)
    assert report.transfers_reason.startswith("not counted")


def test_on_the_processor_nothing_is_copied_and_the_forward_lane_adds_up(bert: Path, tmp_path: Path) -> None:
    rows = {"text": [f"a good film {i} " + "it was long " * (i % 20) for i in range(6_000)]}
    report = packhorse.run(bert, rows, tmp_path, devices="cpu", backend="torch", precision="fp32", tune="off")
    assert report.this_run.transfers == Transfers()
    assert report.transfers_reason == "none: the device's memory is the host's"
    assert any(line.endswith(report.transfers_reason) for line in summary_lines(report))
    stages = {stage["name"]: stage["seconds"] for stage in report.lanes[1]["stages"]}
    unnamed_s = 0.1 + 0.05 * report.wall_s
    assert stages.pop("other") <= unnamed_s
    assert sum(stages.values()) == pytest.approx(report.wall_s, abs=unnamed_s)
