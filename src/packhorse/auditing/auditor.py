"""packhorse.audit: a batch or two through anyone's own loop, with every tensor's place and every copy written down."""

from __future__ import annotations

import copy
import re
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from packhorse.auditing.aligning import align
from packhorse.auditing.device_traffic import profiled
from packhorse.auditing.events import Event
from packhorse.auditing.findings import Audit, DeviceTraffic, Finding
from packhorse.auditing.judging import Target, is_target, judge_padding, judge_placement
from packhorse.auditing.places import LIBRARIES
from packhorse.auditing.tensors import Named, dtype_name, metric_states, metrics_of, model_tensors, placed, tensors_in
from packhorse.auditing.traffic import add_up, judge_traffic
from packhorse.auditing.watching import Watch
from packhorse.devices.inputs import floating_dtype, input_device, is_split, main_device
from packhorse.errors import UsageError

Step = Callable[[Any], Any]
OF_PLACEMENT = re.compile(r"device|dtype|scalar type|same type|meta tensor", re.IGNORECASE)
FAILURES = (RuntimeError, ValueError, NotImplementedError)  # as torch and torchmetrics refuse tensors
OF_INPUTS = ("input_device", "input_dtype")  # of a loop that moves them itself, the copies tell
NO_LABELS = "metrics were not run: the batch has neither labels nor targets"


def audit(
    model: Any,
    batch: Any,
    metrics: Any = None,
    *,
    forward: Step | None = None,
    steps: int = 3,
    device: str | torch.device | None = None,
) -> Audit:
    """Runs the model on the batch, steps times after one warm-up, and lists what lies where and what moves or waits. On
    a CUDA device it runs steps times more, under torch's profiler.

    model: any torch.nn.Module, of transformers or not; or a callable, taken for `forward`. batch: what the model is
    called with: a mapping (by keyword), a tuple or list (one by one), a tensor. metrics: one, a sequence or a mapping
    of objects with update(outputs, labels) as torchmetrics', or of callables of both; copies of them are updated,
    with the batch's labels or targets. forward: the body of your own loop, called with the batch in place of the model;
    metrics are then only looked at, and whatever it changes it changes as often as it runs. device: that the model is
    to compute on; default where most of its weights lie. A model on a CPU waits for nothing: name device="cpu" to see
    where the same code would wait on a GPU. On the meta device, where there are no numbers, answers are zeros.

    A model that audit calls itself runs without gradients. Where it fails over devices or types, that is a finding, and
    it is tried once more with batch and metrics moved to it. Seen are the thread that calls, and no inside of a
    compiled model; torch.cuda.synchronize and its like are replaced meanwhile. Raises UsageError for something that is
    no model, and whatever the code itself raises for other reasons.
    """
    module, step = _subject(model, forward)
    if steps < 1:
        raise UsageError(f"audit(steps={steps}): has to be 1 or more")
    target = _target(module, batch, device)
    own = _copied(metrics) if forward is None and module is not None else metrics_of(metrics)
    tensors = _all_tensors(module, batch, own)
    ran = _ran(step or _model_step(module, own), batch, own, module, _Setting(target.device, tensors, steps, device))
    copies, waits = add_up(ran.events, max(ran.steps, 1))
    findings = [
        *(f for f in judge_placement(tensors, target) if not (step and f.kind in OF_INPUTS and not ran.failures)),
        *ran.failures,
        *judge_traffic(ran.events, max(ran.steps, 1)),
        *judge_padding(batch),
        *_hints(module, ran),
    ]
    return Audit(
        device=str(target.device), dtype=target.dtype and dtype_name(target.dtype), steps=ran.steps, step_s=ran.step_s,
        findings=tuple(_once(findings)), placement=tuple(placed(t) for t in tensors), copies=copies, waits=waits,
        device_traffic=ran.traffic, notes=tuple(ran.notes),
    )  # fmt: skip


def _copied(metrics: Any) -> dict[str, Any]:
    """Those of the caller are not to count our batches."""
    try:
        return copy.deepcopy(metrics_of(metrics))
    except TypeError as error:  # a lock, a file: no copy of them can be made
        raise UsageError(
            f"audit(metrics=...): they are updated on copies, and cannot be copied ({error}). Give forward=, the body "
            "of your own loop: then they are only looked at"
        ) from error


def _once(findings: list[Finding]) -> list[Finding]:
    """What a batch that failed and the next one show alike, once; figures are those of the last."""
    return list({(f.kind, f.where, f.what): f for f in findings}.values())


def _subject(model: Any, forward: Step | None) -> tuple[nn.Module | None, Step | None]:
    if isinstance(model, nn.Module):
        return model, forward
    if forward is not None or not callable(model):
        raise UsageError(
            f"audit({type(model).__name__}, ...): the first argument is a torch.nn.Module, or the body of your own "
            "loop, a function of a batch; with both: audit(model, batch, forward=function)"
        )
    return None, model


def _target(module: nn.Module | None, batch: Any, device: str | torch.device | None) -> Target:
    """Of a function alone: the device named, else that of most of the batch, which may be a wrong one."""
    asked = None if device is None else torch.device(device)
    seen = next((t.device for _, t in tensors_in(batch) if t.device.type != "cpu"), torch.device("cpu"))
    if module is None:
        return Target(asked or seen, asked or seen, None, False)
    main = main_device(module) or seen
    return Target(asked or main, asked or input_device(module) or main, floating_dtype(module), is_split(module))


def _all_tensors(module: nn.Module | None, batch: Any, metrics: Mapping[str, Any]) -> list[Named]:
    own = [] if module is None else list(model_tensors(module))
    inputs = [Named("input", name, tensor) for name, tensor in tensors_in(batch)]
    states = [state for name, metric in metrics.items() for state in metric_states(name, metric)]
    return [*own, *inputs, *states]


# -- running it


@dataclass(frozen=True, slots=True)
class _Setting:
    device: torch.device
    tensors: list[Named]
    steps: int
    asked: str | torch.device | None

    def watch(self) -> Watch:
        names = {id(n.tensor): f"{n.kind} {n.name}" for n in self.tensors}
        of_model = ("parameter", "buffer", "attribute", "quantization", "metric")
        return Watch(self.device, names, frozenset(id(n.tensor) for n in self.tensors if n.kind in of_model))


@dataclass(slots=True)
class _Ran:
    """What became of the batches."""

    events: list[Event]
    failures: list[Finding]
    notes: list[str]
    steps: int = 0
    step_s: float | None = None
    gradients_at: str | None = None
    traffic: tuple[DeviceTraffic, ...] = ()


def _ran(step: Step, batch: Any, metrics: dict[str, Any], module: nn.Module | None, setting: _Setting) -> _Ran:
    ran = _Ran([], [], [])
    if metrics and module is not None and _labels(batch) is None:
        ran.notes.append(NO_LABELS)
    first = _tried(step, batch, setting, ran)
    if first is None and module is not None:
        aligned = align(batch, metrics, like=module)
        if aligned.moved:
            metrics.update(aligned.metrics)
            ran.notes.append(f"it failed as it stands; the rest was seen after {len(aligned.moved)} tensors were moved")
            batch, first = aligned.batch, _tried(step, aligned.batch, setting, ran)
    if first is None:
        return ran
    _watch_steps(step, batch, setting, ran)
    if setting.device.type == "cuda":
        ran.traffic = profiled(lambda: step(batch), setting.steps)
    return ran


def _tried(step: Step, batch: Any, setting: _Setting, ran: _Ran) -> Watch | None:
    """One batch, the warm-up. None where it failed over devices or types: then its events up to there are kept."""
    watch = setting.watch()
    try:
        with watch.watching():
            step(batch)
    except FAILURES as error:
        if not OF_PLACEMENT.search(str(error)):
            raise
        message = str(error).strip().splitlines()[0]
        ran.failures.append(Finding("failed", _raised_at(error), message, "See the devices and types named here", 1))
        ran.failures += judge_traffic(watch.events, 1)
        return None
    return watch


def _watch_steps(step: Step, batch: Any, setting: _Setting, ran: _Ran) -> None:
    watch = setting.watch()
    start = time.perf_counter()
    with watch.watching():
        for _ in range(setting.steps):
            step(batch)
    ran.step_s = (time.perf_counter() - start) / setting.steps
    ran.steps = setting.steps
    waits_matter = setting.device.type != "cpu" or setting.asked is not None
    ran.events += watch.events if waits_matter else []
    ran.gradients_at = None if watch.keeps_gradients is None else str(watch.keeps_gradients)
    if not waits_matter:
        ran.notes.append(
            'the model lies on the CPU, where nothing waits: device="cpu" shows where a GPU would be waited for'
        )


def _raised_at(error: BaseException) -> str:
    """The line of the user's code, and below it that of a library, from the error's own frames."""
    trace, where = error.__traceback__, "its forward"
    while trace is not None:
        file = trace.tb_frame.f_code.co_filename
        if not any(f"/{name}/" in file for name in (*LIBRARIES, "auditing")):
            where = f"{file}:{trace.tb_lineno} in {trace.tb_frame.f_code.co_name}"
        trace = trace.tb_next
    return where


def _model_step(module: nn.Module | None, metrics: dict[str, Any]) -> Step:
    assert module is not None

    def step(batch: Any) -> Any:
        with torch.no_grad():
            outputs = _called(module, batch)
            labels = _labels(batch)
            for metric in metrics.values() if labels is not None else ():
                (metric.update if hasattr(metric, "update") else metric)(_predictions(outputs), labels)
        return outputs

    return step


def _called(module: nn.Module, batch: Any) -> Any:
    if isinstance(batch, Mapping):
        return module(**batch)
    return module(*batch) if isinstance(batch, tuple | list) else module(batch)


def _labels(batch: Any) -> torch.Tensor | None:
    return next((tensor for name, tensor in tensors_in(batch) if is_target(name)), None)


def _predictions(outputs: Any) -> Any:
    logits = getattr(outputs, "logits", outputs)
    return logits if isinstance(logits, torch.Tensor) else next(tensors_in(logits))[1]


def _hints(module: nn.Module | None, ran: _Ran) -> Iterator[Finding]:
    if module is not None and module.training:
        fix = "model.eval() before the loop: dropout changes outputs and takes time"
        yield Finding("training_mode", type(module).__name__, "the model is in training mode", fix, is_hint=True)
    if ran.gradients_at is not None:
        fix = "with torch.inference_mode(): around the loop keeps no activations for a backward pass"
        yield Finding("gradients", ran.gradients_at, "autograd records the batch", fix, is_hint=True)
