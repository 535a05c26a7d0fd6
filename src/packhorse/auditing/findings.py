"""What an audit finds, as data. No torch."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

Kind = Literal[
    "parameter_device",
    "parameter_dtype",
    "buffer_device",
    "buffer_dtype",
    "attribute_device",
    "quantization_device",
    "input_device",
    "input_dtype",
    "metric_device",
    "created_on_host",
    "moved_every_batch",
    "unpinned_copy",
    "blocking_copy",
    "mixed_devices",
    "synchronization",
    "failed",
    "padding",
    "training_mode",
    "gradients",
]
TensorKind = Literal["parameter", "buffer", "attribute", "quantization", "input", "metric"]
Direction = Literal["host to device", "device to host", "device to device"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing to change. Figures are those of one batch."""

    kind: Kind
    where: str  # of a tensor its module path, of a copy or a wait the place in the code
    what: str
    fix: str
    count: float = 0.0
    num_bytes: float = 0.0
    elapsed_s: float = 0.0
    is_hint: bool = False  # costs time, but nothing lies in a wrong place

    def __str__(self) -> str:
        return f"{self.kind} at {self.where}: {self.what}. {self.fix}"


@dataclass(frozen=True, slots=True)
class PlacedTensor:
    """A tensor of the model, of the batch or of a metric."""

    kind: TensorKind
    name: str
    device: str
    dtype: str  # torch's name, without its "torch."
    shape: tuple[int, ...]
    num_bytes: int


@dataclass(frozen=True, slots=True)
class Copies:
    """Copies between devices that one line of code makes. Figures are those of one batch."""

    direction: Direction
    where: str
    source: str  # the tensor's name where it is known, else its shape and type
    is_pinned: bool  # the host's side of it
    is_blocking: bool  # the host waits until it is done
    count: float
    num_bytes: float
    elapsed_s: float  # as the host sees it: of a copy that does not block, its start


@dataclass(frozen=True, slots=True)
class Waits:
    """Points at which the host waits for the device, by line of code. Figures are those of one batch."""

    call: str  # what was called: Tensor.item, torch.cuda.synchronize, ...
    where: str
    count: float
    elapsed_s: float


@dataclass(frozen=True, slots=True)
class DeviceTraffic:
    """What the device's own profiler counted; of a CUDA device only. Figures are those of one batch."""

    name: str  # Memcpy HtoD (Pageable -> Device), cudaStreamSynchronize, ...
    count: float
    num_bytes: float
    elapsed_s: float


@dataclass(frozen=True, slots=True)
class Audit:
    """What `packhorse.audit` found. str() is a readable text."""

    device: str  # that the model computes on
    dtype: str | None  # of the model's floating-point parameters; None where it has none
    steps: int  # batches that were watched
    step_s: float | None  # mean time of a watched batch, the watching included; None where none went through
    findings: tuple[Finding, ...]
    placement: tuple[PlacedTensor, ...]
    copies: tuple[Copies, ...]
    waits: tuple[Waits, ...]
    device_traffic: tuple[DeviceTraffic, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether there is nothing to change; hints do not count."""
        return all(finding.is_hint for finding in self.findings)

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return dataclasses.asdict(self) | {"ok": self.ok}

    def __str__(self) -> str:
        from packhorse.auditing.text import audit_text

        return audit_text(self)
