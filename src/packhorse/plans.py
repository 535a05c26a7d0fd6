"""What was decided before the first shard: data in the manifest, printed by `packhorse plan`, replayed on resume."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

Status = Literal["chosen", "beaten", "not_tried", "inaccurate", "failed"]


class Alternative(BaseModel):
    """One way to run a job that was considered, and what became of it. Rates in real tokens/s, times in seconds."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    backend: str
    precision: str
    max_batch_tokens: int
    workers: int
    threads: int
    compiled: bool = False
    """By torch.compile."""
    rows_at_once: int | None = None
    """Of generation: rows that are written on at the same time."""
    engine: str | None = None
    """Of generation: what was tried on whole prompts and outputs. None: a rate of steps with all rows."""
    tokenizer_threads: int | None = None
    """None: one a core, or as --tokenizer-threads says."""
    predicted_tokens_per_s: float | None = None
    """From FLOPs, bytes and the machine's ceilings."""
    measured_tokens_per_s: float | None = None
    """On rows of the job; None where it was not tried."""
    setup_s: float = 0.0
    """Still to be paid before the first row: loading, export, conversion, compilation, quantization."""
    total_s: float | None = None
    """setup_s and all tokens of the job at the measured rate, else at the predicted one."""
    accuracy: dict[str, Any] | None = None
    """Against fp32 on rows of the job, where it was compared: tuning.gate.Verdict's figures."""
    peak_bytes: int | None = None
    """Of the device's memory, where it was measured."""
    status: Status
    reason: str = ""
    """Why it was not chosen, or not tried, in a sentence."""

    @property
    def name(self) -> str:
        """backend precision, as in "torch bf16"."""
        return " ".join([self.backend, self.precision, *(["compiled"] if self.compiled else [])])


class Forecast(BaseModel):
    """What a job was expected to take. Of an input that was sampled, not read."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    rows: float
    tokens: float
    sample_rows: int
    """Rows that lengths and rates were looked at on."""
    tokens_per_s: float | None = None
    total_s: float | None = None
    """Set-up still to be paid, and the rows."""
    tuned_s: float = 0.0
    """Spent on measuring alternatives."""
    source: Literal["default", "predicted", "measured", "cached"] = "default"
    """default: nothing was worth comparing; cached: measured by an earlier run on this machine."""


class Plan(BaseModel):
    """What was decided before the first shard. It is written into the manifest; a resumed run replays it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    task: str
    backend: str
    device: str
    precision: str
    attention: str
    batching: Literal["packed", "padded", "fixed", "equal"]
    engine: str | None = None
    """Of generation: continuous, static, generate, paged, vllm or null."""
    max_new_tokens: int | None = None
    """Of generation."""
    batch_size: int | None
    max_batch_tokens: int
    max_length: int | None
    workers: int
    threads: int
    compiled: bool = False
    tokenizer: str
    tokenizer_threads: int | None = None
    text_column: str
    pair_column: str | None
    accuracy: dict[str, Any] | None = None
    """Of a precision below fp32, where it was compared: tuning.gate.Verdict's figures."""
    device_map: dict[str, str] | None = None
    """With --device-map the device of every module, as it came out; a resumed run lays them the same."""
    prompts_at: str | None = None
    """ISO time that chat templates which ask for one are told; a resumed run tells them the same."""
    quality: dict[str, Any] | None = None
    """Of a quantized model that writes, beside the same without: perplexities, agreement, memory, speed."""
    notes: tuple[str, ...] = ()
    versions: dict[str, str] = {}
    alternatives: tuple[Alternative, ...] = ()
    """All ways that were considered, the chosen one first."""
    forecast: Forecast | None = None
