"""What a backend is told to load."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from packhorse.data import ModelDescription, Reduction, Tokens
from packhorse.generation import Decoding, Placement, Quantization


@dataclass(frozen=True, slots=True)
class LoadRequest:
    """All that a backend is told when it loads a model."""

    description: ModelDescription
    reduction: Reduction
    device: str
    precision: str
    workers: int  # forwards at the same time
    threads: int  # inside an operator, each worker's
    trial: Tokens  # a few short rows of different lengths, the first two equal
    rows: Tokens  # up to 512 rows of this job, spread over their lengths; none where the job is not known yet
    longest: int | None  # tokens of the job's longest row; None where not all rows are known
    attention: str  # auto, or what --attention asks for
    provider: str  # auto, or the execution provider that --provider asks for
    onnx_file: str | None
    compiled: bool  # by torch.compile
    model_key: Callable[[], str]  # sha256 over every file of the model: what is built from it is cached under it
    engine: str = "auto"  # of generation, or what --engine asks for
    decoding: Decoding | None = None  # of a model that writes
    quantization: Quantization = field(default_factory=Quantization)
    placement: Placement = field(default_factory=Placement)
