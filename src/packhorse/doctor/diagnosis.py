"""What the doctor finds, as data."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

# works: it was run just now. installed: it was not run, since importing it takes seconds; --measure does. no hardware:
# no command would mend it.
State = Literal["works", "installed", "missing", "broken", "no hardware"]


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that packhorse can use."""

    area: str  # backend, attention, precision, engine, quantization, tokenizer, reader
    name: str
    state: State
    detail: str = ""
    command: str | None = None  # that would mend it


@dataclass(frozen=True, slots=True)
class DeviceFound:
    name: str  # of --devices
    model: str
    total_bytes: int | None
    free_bytes: int | None
    precisions: tuple[str, ...]  # that it has instructions for
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Variable:
    """Of the environment."""

    name: str
    value: str | None
    meaning: str


@dataclass(frozen=True, slots=True)
class Lying:
    """Tensors of a model, or of a job with it, on one device in one type."""

    kind: str  # parameter, buffer, quantization, input, output, metric
    device: str
    dtype: str
    count: int | None
    num_bytes: int
    detail: str = ""


@dataclass(frozen=True, slots=True)
class ModelPlaced:
    """Where a model would lie, from its config and the headers of its weights."""

    name: str
    task: str
    device: str
    precision: str
    lying: tuple[Lying, ...]
    need: dict[str, Any] | None  # models.memory.MemoryNeed; None where no header tells
    free_bytes: dict[str, int]
    advice: tuple[str, ...]  # what would make it fit; none where it does

    @property
    def fits(self) -> bool | None:
        """None where it is not known."""
        return None if self.need is None or not self.free_bytes else not self.advice


@dataclass(frozen=True, slots=True)
class Diagnosis:
    machine: dict[str, Any]  # machine.read_machine
    limits: dict[str, Any]  # of the container, NUMA nodes, the cache's disk
    devices: tuple[DeviceFound, ...]
    libraries: dict[str, str | None]  # versions; None: not installed
    ceilings: tuple[dict[str, Any], ...]  # devices.ceilings.Ceilings, of devices that were measured
    checks: tuple[Check, ...]
    environment: tuple[Variable, ...]
    notes: tuple[str, ...]
    elapsed_s: float
    model: ModelPlaced | None = None

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        found = dataclasses.asdict(self)
        if self.model is not None:
            found["model"]["fits"] = self.model.fits
        return found
