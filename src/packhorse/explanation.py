"""What `packhorse plan` says of a job, as data."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from packhorse.plans import Alternative, Forecast, Plan


@dataclass(frozen=True, slots=True)
class BatchFigures:
    """One batch of those that a shard would be cut into."""

    number: int
    rows: int  # sequences
    shortest: int  # tokens
    longest: int
    real_tokens: int
    computed_tokens: int


@dataclass(frozen=True)
class Explanation:
    """What `packhorse plan` prints. Times in seconds, sizes in bytes; a rate is in real tokens/s."""

    model: str
    input: str
    forecast: Forecast
    alternatives: tuple[Alternative, ...]  # the chosen one first
    lengths: dict[str, int]  # sequences of the sample by token length: one a row, or several
    longest: int
    truncated_rows: int  # of the sample
    batching: str
    num_batches: int  # of the shard that was planned
    planned_rows: int  # rows of it, drawn from the sample's lengths
    batches: list[BatchFigures] = field(default_factory=list)
    padding_efficiency: float = 1.0
    sequences_per_row: float = 1.0
    weight_bytes: int | None = None
    batch_bytes: int | None = None
    price_per_hour: float | None = None
    task: str = ""
    rows_at_once: int | None = None  # of generation; the fields about batches are not
    max_new_tokens: int | None = None
    memory: dict[str, Any] | None = None  # bytes: models.memory.MemoryNeed, total_bytes, free_bytes by device
    advice: tuple[str, ...] = ()  # what would make it fit, where it does not
    plan: Plan | None = None  # where ways were measured, or remembered; `packhorse run --plan` replays it
    seconds: float = 0.0

    @property
    def cost(self) -> float | None:
        """Of the predicted time, in the currency of the price."""
        if self.price_per_hour is None or self.forecast.total_s is None:
            return None
        return self.price_per_hour * self.forecast.total_s / 3_600

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        models = {
            "forecast": self.forecast.model_dump(mode="json"),
            "alternatives": [a.model_dump(mode="json") for a in self.alternatives],
            "plan": self.plan and self.plan.model_dump(mode="json"),
        }
        plain = {name: value for name, value in vars(self).items() if name not in models and name != "batches"}
        return plain | models | {"batches": [asdict(b) for b in self.batches], "cost": self.cost}
