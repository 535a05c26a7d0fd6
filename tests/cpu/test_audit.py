"""Faults planted in small loops. The host is the CPU; the device is torch's meta device, or the CPU taken for one."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import packhorse
from packhorse.auditing.device_traffic import traffic_of
from packhorse.auditing.findings import Audit, Finding
from packhorse.errors import UsageError

HERE = Path(__file__).name


class Body(nn.Module):
    """Embeddings, a buffer that is added, a linear layer: [rows, length] -> [rows, length, 3]."""

    def __init__(self) -> None:
        super().__init__()
        self.embeddings = nn.Embedding(11, 4)
        self.register_buffer("shift", torch.ones(4))
        self.head = nn.Linear(4, 3)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None) -> torch.Tensor:
        hidden = self.embeddings(input_ids) + self.shift.to(input_ids.device)
        if attention_mask is not None:
            hidden = hidden * attention_mask.unsqueeze(-1)
        return self.head(hidden)


class Accuracy:
    """Of torchmetrics' form: states, update, compute."""

    def __init__(self, device: str) -> None:
        self.correct = torch.zeros(3, device=device)
        self.seen = [torch.zeros(2, device=device)]

    def update(self, outputs: torch.Tensor, labels: torch.Tensor) -> None:
        self.correct += outputs.mean((0, 1))


def meta_model() -> Body:
    return Body().to("meta").eval()


def batch(device: str = "meta", rows: int = 2, length: int = 5) -> dict[str, torch.Tensor]:
    ids = torch.ones(rows, length, dtype=torch.long, device=device)
    return {"input_ids": ids, "attention_mask": torch.ones(rows, length, dtype=torch.long, device=device)}


def only(found: Audit, kind: str) -> Finding:
    matching = [f for f in found.findings if f.kind == kind]
    assert len(matching) == 1, str(found)
    return matching[0]


def kinds(found: Audit) -> set[str]:
    return {f.kind for f in found.findings}


def test_a_loop_without_a_fault_has_nothing_to_change() -> None:
    found = packhorse.audit(meta_model(), batch())
    assert found.ok and not found.findings and not found.copies and not found.waits
    assert (found.device, found.dtype, found.steps) == ("meta", "float32", 3)
    assert {(p.kind, p.name, p.shape, p.num_bytes) for p in found.placement} == {
        ("parameter", "embeddings.weight", (11, 4), 176),
        ("parameter", "head.weight", (3, 4), 48),
        ("parameter", "head.bias", (3,), 12),
        ("buffer", "shift", (4,), 16),
        ("input", "input_ids", (2, 5), 80),
        ("input", "attention_mask", (2, 5), 80),
    }


def test_a_buffer_left_on_the_cpu_and_copied_for_every_batch() -> None:
    model = meta_model()
    model.shift = torch.ones(4)
    found = packhorse.audit(model, batch())
    assert not found.ok
    lying = only(found, "buffer_device")
    assert lying.where == "shift" and "cpu" in lying.what and "meta" in lying.what and "meta" in lying.fix
    moved = only(found, "moved_every_batch")
    assert "buffer shift" in moved.what and HERE in moved.where and "in forward" in moved.where
    assert (moved.count, moved.num_bytes) == (1, 16)
    assert [(c.direction, c.count, c.num_bytes) for c in found.copies] == [("host to device", 1, 16)]


def test_a_parameter_left_on_the_cpu_is_named_and_where_it_meets_the_others() -> None:
    model = meta_model()
    model.head.bias = nn.Parameter(torch.zeros(3))
    found = packhorse.audit(model, batch())
    assert only(found, "parameter_device").where == "head.bias"
    assert "parameter head.bias" in "".join(f.what for f in found.findings if f.kind == "mixed_devices")


def test_a_tensor_that_is_no_buffer_stays_behind() -> None:
    model = Body().eval()
    model.table = torch.arange(4.0)
    found = packhorse.audit(model.to("meta"), batch())
    assert only(found, "attribute_device").where == "table"
    assert "register_buffer('table'" in only(found, "attribute_device").fix


def test_a_metric_on_the_cpu() -> None:
    labelled = batch() | {"labels": torch.zeros(2, device="meta")}
    metric = Accuracy("cpu")
    found = packhorse.audit(meta_model(), labelled, {"accuracy": metric}, forward=lambda b: None)
    assert {f.where for f in found.findings if f.kind == "metric_device"} == {"accuracy.correct", "accuracy.seen[0]"}
    assert metric.correct.device.type == "cpu"


def test_metrics_are_updated_with_the_labels_but_not_the_ones_handed_in() -> None:
    class Headed(Body):
        def forward(self, input_ids: torch.Tensor, labels: torch.Tensor) -> Any:  # type: ignore[override]
            return super().forward(input_ids)

    metric, calls = Accuracy("cpu"), []
    labelled = {"input_ids": torch.ones(2, 5, dtype=torch.long), "labels": torch.zeros(2)}
    found = packhorse.audit(Headed().eval(), labelled, [metric, lambda o, y: calls.append((o.shape, y.shape))], steps=2)
    assert found.ok and not metric.correct.any()
    assert calls == [((2, 5, 3), (2,))] * 3  # a warm-up and two that are watched


@pytest.mark.parametrize(
    ("call", "ask"),
    [
        ("Tensor.item", lambda x: x.sum().item()),
        ("Tensor.__float__", lambda x: float(x.sum())),
        ("Tensor.__bool__", lambda x: bool((x > 0).all())),
        ("Tensor.tolist", lambda x: x.tolist()),
        ("Tensor.cpu", lambda x: x.cpu()),
        ("printing a tensor", lambda x: repr(x)),
        ("torch.cuda.synchronize", lambda x: torch.cuda.synchronize()),
    ],
)
@pytest.mark.parametrize("device", ["meta", "cpu"])
def test_what_makes_the_host_wait_is_found_with_its_line(call: str, ask: Callable[..., Any], device: str) -> None:
    model = Body().to(device).eval()

    def step(each: Any) -> None:
        with torch.inference_mode():
            ask(model(**each))

    if call == "Tensor.cpu" and device == "cpu":
        pytest.skip("of a tensor on the CPU, cpu() is the tensor itself")
    found = packhorse.audit(model, batch(device), forward=step, device=device, steps=4)
    waiting = only(found, "synchronization")
    line = ask.__code__.co_firstlineno
    assert waiting.what.startswith(call) and waiting.count == 1
    assert f"{HERE}:{line} in <lambda>" in waiting.where
    assert [(w.call, w.count) for w in found.waits] == [(call, 1)]


@pytest.mark.parametrize("ask", [lambda x: x.nonzero(), lambda x: x[x > 0], lambda x: x.unique(), torch.where])
def test_results_of_unknown_size_make_the_host_wait(ask: Callable[..., Any]) -> None:
    model = Body().eval()
    found = packhorse.audit(model, batch("cpu"), forward=lambda b: ask(model(**b).detach() > 0), device="cpu")
    assert "three arguments" in only(found, "synchronization").fix


def test_on_a_cpu_that_is_no_stand_in_nothing_waits() -> None:
    model = Body().eval()
    found = packhorse.audit(model, batch("cpu"), forward=lambda b: model(**b).sum().item())
    assert not found.waits and "synchronization" not in kinds(found)
    assert any("nothing waits" in note for note in found.notes)


def test_float32_inputs_to_a_bfloat16_model_fail_and_the_rest_is_seen_after_alignment() -> None:
    model = nn.Sequential(nn.Linear(4, 3)).to(torch.bfloat16).eval()
    found = packhorse.audit(model, torch.ones(2, 4))
    wrong = only(found, "input_dtype")
    assert wrong.where == "batch" and "float32" in wrong.what and "bfloat16" in wrong.what
    assert "dtype" in only(found, "failed").what
    assert found.steps == 3 and any("1 tensors were moved" in note for note in found.notes)


def test_a_parameter_of_another_type() -> None:
    model = meta_model().to(torch.bfloat16)
    model.head.weight.data = model.head.weight.data.float()
    model.register_buffer("frequencies", torch.ones(4, device="meta"), persistent=False)
    found = packhorse.audit(model, batch(), forward=lambda b: None)
    assert [f.where for f in found.findings] == ["head.weight"]
    assert only(found, "parameter_dtype").num_bytes == 48


def test_many_parameters_of_another_type_are_one_finding() -> None:
    layers = [nn.Linear(2, 2, bias=False, dtype=torch.float16) for _ in range(20)]
    found = packhorse.audit(nn.Sequential(nn.Linear(99, 2), *layers), torch.ones(1), forward=lambda b: None)
    one = only(found, "parameter_dtype")
    assert one.count == 20 and one.num_bytes == 160 and "12 more" in one.where


@pytest.mark.parametrize("is_pinned", [False, True])
def test_copies_from_pageable_memory(is_pinned: bool) -> None:
    model = meta_model()

    def step(each: dict[str, torch.Tensor]) -> None:
        pinned = {name: t.pin_memory() if is_pinned else t for name, t in each.items()}
        with torch.inference_mode():
            model(**{name: t.to("meta", non_blocking=True) for name, t in pinned.items()})

    found = packhorse.audit(model, batch("cpu"), forward=step)
    copies = {(c.source, c.count, c.num_bytes, c.is_pinned, c.is_blocking) for c in found.copies}
    if is_pinned:
        assert "unpinned_copy" not in kinds(found) and len(copies) == 1
        return
    names = ("input input_ids", "input attention_mask")
    assert copies == {(name, 1, 80, False, False) for name in names}
    assert kinds(found) == {"unpinned_copy"}  # the loop itself moves them: where they come from is no fault
    both = only(found, "unpinned_copy")
    assert (both.count, both.num_bytes) == (2, 160) and all(name in both.what for name in names)


def test_a_pinned_copy_that_blocks() -> None:
    model = meta_model()
    found = packhorse.audit(model, batch("cpu"), forward=lambda b: b["input_ids"].pin_memory().to("meta"))
    assert only(found, "blocking_copy").count == 1
    assert found.copies[0].is_pinned and found.copies[0].is_blocking


def test_an_attention_mask_on_another_device() -> None:
    mixed = batch() | {"attention_mask": torch.ones(2, 5)}
    found = packhorse.audit(meta_model(), mixed)
    assert only(found, "input_device").where == "attention_mask"
    assert "device" in only(found, "failed").what and HERE in only(found, "failed").where
    assert found.steps == 3 and not found.copies  # of the batch that was moved


def test_a_tensor_made_on_the_wrong_device() -> None:
    class Positions(Body):
        def forward(self, input_ids: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
            positions = torch.arange(input_ids.shape[1])
            return self.embeddings(input_ids + (positions + 1).to(input_ids.device))

    found = packhorse.audit(Positions().to("meta").eval(), {"input_ids": batch()["input_ids"]})
    made = only(found, "created_on_host")
    line = Positions.forward.__code__.co_firstlineno + 1
    assert f"{HERE}:{line} in forward" in made.where and "arange" in made.what
    assert made.count == 1 and made.num_bytes == 40
    assert "unpinned_copy" not in kinds(found)


def test_numbers_of_the_host_have_to_be_copied_but_can_be_pinned() -> None:
    model = meta_model()
    for make in (
        lambda: torch.tensor([[1, 2]], device="meta"),
        lambda: torch.tensor([[1, 2]]).to("meta"),
        lambda: torch.ones(1, device="meta").new_tensor([1, 2], dtype=torch.long),
    ):
        found = packhorse.audit(model, batch(), forward=lambda b, make=make: make())
        assert kinds(found) == {"unpinned_copy"}, str(found)
        assert only(found, "unpinned_copy").num_bytes == 16


def test_padding_to_the_longest_length_is_a_hint() -> None:
    padded = batch("cpu", rows=3, length=100)
    padded["attention_mask"][:, 12:] = 0
    padded["attention_mask"][1:, 6:] = 0
    found = packhorse.audit(Body().eval(), padded)
    hint = only(found, "padding")
    assert hint.is_hint and found.ok
    assert "92%" in hint.what and "12 tokens" in hint.what and "12 wide" in hint.fix  # 24 of 300 are real
    short = {name: tensor[:, :12] for name, tensor in padded.items()}
    assert "padding" not in kinds(packhorse.audit(Body().eval(), short))  # 24 of 36


def test_training_mode_and_gradients_are_hints() -> None:
    model = Body()
    found = packhorse.audit(model, batch("cpu"), forward=lambda b: model(**b))
    assert kinds(found) == {"training_mode", "gradients"} and found.ok


def test_a_transformers_model_has_its_own_waits_told_of_the_line_that_calls_it(bert: Path) -> None:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    model = AutoModelForSequenceClassification.from_pretrained(bert).eval()
    encoded = AutoTokenizer.from_pretrained(bert)(["a good film", "bad"], padding=True, return_tensors="pt")
    found = packhorse.audit(model, encoded, device="cpu")
    assert found.ok, str(found)
    assert all(HERE in f.where and "transformers/" in f.where for f in found.findings if f.kind == "synchronization")
    assert {p.name for p in found.placement if p.kind == "input"} == set(encoded)
    assert sum(p.num_bytes for p in found.placement if p.kind == "parameter") == 4 * model.num_parameters()


def test_quantization_states_are_listed() -> None:
    class State:
        def __init__(self, state2: State | None = None) -> None:
            self.absmax = torch.ones(2)
            self.state2 = state2

    layer = nn.Linear(4, 4)
    layer.weight.quant_state = State(State())  # type: ignore[attr-defined]
    found = packhorse.audit(layer.eval(), torch.ones(1, 4))
    states = {p.name for p in found.placement if p.kind == "quantization"}
    assert states == {"weight.quant_state.absmax", "weight.quant_state.state2.absmax"}


def test_torchaos_weights_are_listed_by_their_parts() -> None:
    quantization = pytest.importorskip("torchao.quantization")
    model = nn.Sequential(nn.Linear(64, 64, bias=False)).eval()
    quantization.quantize_(model, quantization.Int8WeightOnlyConfig())
    found = packhorse.audit(model, torch.ones(1, 64))
    parts = {p.name: p for p in found.placement if p.kind == "quantization"}
    assert max((p.num_bytes, p.dtype) for p in parts.values()) == (64 * 64, "int8")
    assert sum(p.num_bytes for p in found.placement if p.kind == "parameter") == 0  # nothing is counted twice


def test_only_a_loop_without_a_model() -> None:
    def step(each: torch.Tensor) -> float:
        return each.sum().item()

    found = packhorse.audit(step, torch.ones(3, device="meta"))
    assert only(found, "synchronization").count == 1 and found.dtype is None
    assert found.device == "meta"


class WithLock:
    """A metric of which no copy can be made."""

    def __init__(self) -> None:
        self.lock = threading.Lock()

    def update(self, outputs: Any, labels: Any) -> None: ...


def test_other_errors_are_those_of_the_code_itself() -> None:
    def step(each: Any) -> None:
        raise RuntimeError("the disk is full")

    with pytest.raises(RuntimeError, match="the disk is full"):
        packhorse.audit(meta_model(), batch(), forward=step)
    assert torch.cuda.synchronize.__module__ == "torch.cuda"  # put back
    with pytest.raises(UsageError, match="Module"):
        packhorse.audit("model", batch())
    with pytest.raises(UsageError, match=r"cannot be copied .*Give forward="):
        packhorse.audit(meta_model(), batch(), [WithLock()])
    with pytest.raises(UsageError, match="steps=0"):
        packhorse.audit(meta_model(), batch(), steps=0)


def test_as_json_and_as_text() -> None:
    model = meta_model()
    model.shift = torch.ones(4)
    found = packhorse.audit(model, batch(), forward=lambda b: model(**b).sum().item())
    read = json.loads(json.dumps(found.to_dict()))
    assert read["ok"] is False and [f["kind"] for f in read["findings"]] == [f.kind for f in found.findings]
    assert read["placement"][0]["name"] == "embeddings.weight" and read["copies"][0]["num_bytes"] == 16
    text = str(found)
    assert all(f.where in text and f.fix in text for f in found.findings)
    assert all(p.name in text for p in found.placement) and "host to device" in text and "Tensor.item" in text


def test_the_profilers_trace_is_added_up() -> None:
    def event(name: str, kind: str, microseconds: float, **args: Any) -> dict[str, Any]:
        return {"ph": "X", "name": name, "cat": kind, "dur": microseconds, "args": args}

    copied = "Memcpy HtoD (Pageable -> Device)"
    trace = {
        "traceEvents": [
            event(copied, "gpu_memcpy", 30, bytes=1_000), event(copied, "gpu_memcpy", 10, bytes=3_000),
            event("cudaStreamSynchronize", "cuda_runtime", 500), event("cudaLaunchKernel", "cuda_runtime", 9),
            event("gemm", "kernel", 9_000), {"ph": "M", "name": "process_name"},
        ]
    }  # fmt: skip
    waits, copies = traffic_of(trace, steps=2)
    assert (waits.name, waits.count, waits.elapsed_s) == ("cudaStreamSynchronize", 0.5, pytest.approx(250e-6))
    assert (copies.name, copies.count, copies.num_bytes) == (copied, 1, 2_000)
    assert copies.elapsed_s == pytest.approx(20e-6)
