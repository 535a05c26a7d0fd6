"""Faults planted in loops on a real GPU, with its profiler as a second witness."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import packhorse
from packhorse.auditing.findings import Audit


class Body(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("shift", torch.ones(64))
        self.head = nn.Linear(64, 3)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.head(inputs + self.shift.to(inputs.device))


def model() -> Body:
    return Body().cuda().eval()


def kinds(found: Audit) -> set[str]:
    return {f.kind for f in found.findings}


def profiled(found: Audit, word: str) -> float:
    """Counts a batch of what the profiler names so."""
    return sum(t.count for t in found.device_traffic if word in t.name)


def test_a_clean_loop_copies_nothing() -> None:
    found = packhorse.audit(model(), torch.ones(8, 64, device="cuda"))
    assert found.ok and not found.copies and not found.waits
    assert profiled(found, "HtoD") == profiled(found, "DtoH") == 0


def test_a_buffer_left_on_the_cpu() -> None:
    body = model()
    body.shift = torch.ones(64)
    found = packhorse.audit(body, torch.ones(8, 64, device="cuda"))
    assert {"buffer_device", "moved_every_batch"} <= kinds(found)
    assert profiled(found, "Memcpy HtoD (Pageable") == 1
    assert found.copies[0].num_bytes == 256


def test_inputs_on_the_cpu_fail_and_are_then_moved() -> None:
    found = packhorse.audit(model(), torch.ones(8, 64))
    assert {"input_device", "failed"} <= kinds(found) and found.steps == 3


@pytest.mark.parametrize("is_pinned", [False, True])
def test_pinned_and_pageable_copies(is_pinned: bool) -> None:
    body, batch = model(), torch.ones(8, 64)
    batch = batch.pin_memory() if is_pinned else batch

    def step(each: torch.Tensor) -> None:
        with torch.inference_mode():
            body(each.to("cuda", non_blocking=True))

    found = packhorse.audit(body, batch, forward=step)
    assert ("unpinned_copy" in kinds(found)) is not is_pinned
    assert [(c.is_pinned, c.num_bytes) for c in found.copies] == [(is_pinned, 2_048)]
    assert profiled(found, "Memcpy HtoD (Pinned" if is_pinned else "Memcpy HtoD (Pageable") == 1


@pytest.mark.parametrize("ask", [lambda x: x.sum().item(), lambda x: x.cpu(), lambda x: (x > 0).nonzero()])
def test_waits_are_found_where_the_profiler_counts_some(ask: Any) -> None:
    body = model()

    def step(each: torch.Tensor) -> None:
        with torch.inference_mode():
            ask(body(each))

    found = packhorse.audit(body, torch.ones(8, 64, device="cuda"), forward=step)
    assert sum(w.count for w in found.waits) == 1 and "test_audit.py" in found.waits[0].where
    assert profiled(found, "StreamSynchronize") >= 1


def test_synchronize_is_counted_and_done() -> None:
    found = packhorse.audit(model(), torch.ones(1, device="cuda"), forward=lambda b: torch.cuda.synchronize())
    assert [(w.call, w.count) for w in found.waits] == [("torch.cuda.synchronize", 1)]


def test_float32_inputs_to_a_bfloat16_model() -> None:
    found = packhorse.audit(model().bfloat16(), torch.ones(8, 64, device="cuda"))
    assert "input_dtype" in kinds(found)


def test_alignment_moves_by_pinned_memory() -> None:
    ids = torch.arange(1_000).view(10, 100)
    batch, _, moved = packhorse.align({"input_ids": ids, "x": torch.rand(2)}, like=model().bfloat16())
    assert batch["input_ids"].device.type == "cuda" and batch["x"].dtype == torch.bfloat16 and len(moved) == 2
    assert torch.equal(batch["input_ids"].cpu(), ids)
