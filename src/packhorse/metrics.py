"""The report of a run: what was counted, and every figure that follows from it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from packhorse.counters import Counters, LiveCounters
from packhorse.histogram import BUCKETS

__all__ = ["Counters", "LiveCounters", "RunReport", "activation_bytes"]

# Of a weight. int4: half of one for a linear layer, two for an embedding, which in small models is near one for all.
VALUE_BYTES = {"fp32": 4, "bf16": 2, "fp16": 2, "int8": 1, "int4": 1, "fp8": 1}
VALUES_PER_LAYER = 20
HARDLY_IDLE = 0.05  # of the wall time: a device that waited less has nothing worth naming to wait for
DERIVED = (
    "rows", "error_rows", "rows_per_s", "tokens_per_s", "generated_tokens_per_s", "padding_efficiency", "total_s",
    "device_busy_share",
    "flops_per_s", "gemm_share", "device_flops_per_s", "device_gemm_share", "moved_bytes", "arithmetic_intensity",
    "lanes", "limiting_stage", "idle_share", "idle_cause", "pinned_share", "transfers_reason", "lengths",
    "throughput", "cost", "cost_per_million_rows", "energy_j_per_row",
)  # fmt: skip


def activation_bytes(num_layers: int, width: int, precision: str) -> int:
    """Bytes of activations that a token reads and writes on its way through a transformer.

    Per layer 20 values of the hidden size h: what goes into and comes out of the linear layers and attention (query,
    key and value h + 3h, attention 3h + h, its projection h + h, a feed-forward of four times the width h + 4h and
    4h + h), each once.
    """
    value_bytes = 2 if precision == "int4" else VALUE_BYTES.get(precision, 4)  # of int4 the weights alone
    return num_layers * VALUES_PER_LAYER * width * value_bytes


@dataclass
class RunReport:
    """How a run went. Times in seconds, sizes in bytes, energy in joules, rates per second of wall time.

    `counters` are those of all committed shards, `this_run` those of this process alone; rates, shares, samples,
    examples of errors, cost and energy are of this process.
    """

    output: str
    status: str  # finished | already_finished
    plan: dict[str, Any]
    counters: Counters
    this_run: Counters
    model: str = ""
    input: str = ""
    wall_s: float = 0.0  # from the first row read to the last commit
    setup_s: float = 0.0  # loading, fingerprints, choosing the precision
    wait_input_s: float = 0.0
    wait_output_s: float = 0.0
    peak_bytes: int = 0
    device_peak_bytes: int | None = None
    gemm_flops_per_s: float | None = None  # best measured on this device at this precision
    ceilings: dict[str, Any] | None = None  # devices.ceilings.Ceilings as JSON values; None where not measured
    weight_bytes: int = 0  # of the loaded model, as a batch reads them; 0: not known
    activation_bytes_per_token: int = 0  # activation_bytes(); 0: not known
    shards: int = 0
    parts: list[str] = field(default_factory=list)
    sha256: str | None = None  # of a one-file output
    workers: list[dict[str, Any]] = field(default_factory=list)  # of several processes: device, rows, busy_share, ...
    samples: list[dict[str, float]] = field(default_factory=list)  # running totals, at most 240 of them
    commits: list[dict[str, float]] = field(default_factory=list)  # likewise
    error_examples: dict[str, list[dict[str, Any]]] = field(default_factory=dict)  # by kind: row, message
    machine: dict[str, Any] = field(default_factory=dict)
    price_per_hour: float | None = None  # in any currency
    energy_j: float | None = None  # of the wall time, without set-up
    energy_sources: dict[str, float] = field(default_factory=dict)  # joules by what was measured
    energy_reason: str = ""  # what is not in it, and why
    html_path: str = ""  # of report.html

    @property
    def rows(self) -> int:
        return self.counters.rows

    @property
    def error_rows(self) -> int:
        return self.counters.error_rows

    @property
    def total_s(self) -> float:
        """Wall time and set-up."""
        return self.wall_s + self.setup_s

    @property
    def rows_per_s(self) -> float:
        return self.this_run.rows / self.wall_s if self.wall_s else 0.0

    @property
    def tokens_per_s(self) -> float:
        return self.this_run.real_tokens / self.wall_s if self.wall_s else 0.0

    @property
    def generated_tokens_per_s(self) -> float:
        """Of models that write."""
        return self.this_run.generated_tokens / self.wall_s if self.wall_s else 0.0

    @property
    def padding_efficiency(self) -> float:
        return self.this_run.real_tokens / self.this_run.computed_tokens if self.this_run.computed_tokens else 1.0

    @property
    def device_busy_share(self) -> float:
        """Copies not counted. Of several worker processes their mean."""
        return self._device_s / self.wall_s if self.wall_s else 0.0

    @property
    def _device_s(self) -> float:
        """In which the device computed: copies between its memory and the host's left out."""
        return self._mean_s(max(self.this_run.compute_s - self.this_run.transfer_s, 0.0))

    def _mean_s(self, seconds: float) -> float:
        """Of a timer to which each worker process adds."""
        return seconds / max(len(self.workers), 1)

    @property
    def flops_per_s(self) -> float:
        """Useful FLOP/s over the wall time."""
        return self.this_run.flops / self.wall_s if self.wall_s else 0.0

    @property
    def device_flops_per_s(self) -> float:
        """Useful FLOP/s over the time in which the device computed; several devices together."""
        return self.this_run.flops / self._device_s if self._device_s else 0.0

    @property
    def gemm_share(self) -> float | None:
        """Useful FLOP/s as a share of the best matrix product measured on this device; None if not measured."""
        return self.flops_per_s / self.gemm_flops_per_s if self.gemm_flops_per_s else None

    @property
    def device_gemm_share(self) -> float | None:
        return self.device_flops_per_s / self.gemm_flops_per_s if self.gemm_flops_per_s else None

    @property
    def moved_bytes(self) -> int | None:
        """All weights once a batch, and the activations of the computed tokens; None where the weights are not known.

        What a cache keeps from one layer to the next is counted all the same: an upper bound of the memory's traffic.
        """
        if not self.weight_bytes or not self.this_run.batches:
            return None
        activations = self.activation_bytes_per_token * self.this_run.computed_tokens
        return self.weight_bytes * self.this_run.batches + activations

    @property
    def arithmetic_intensity(self) -> float | None:
        """Useful FLOPs per byte moved: the x axis of a roofline (Williams, Waterman and Patterson, 2009)."""
        return self.this_run.flops / self.moved_bytes if self.moved_bytes and self.this_run.flops else None

    @property
    def lanes(self) -> list[dict[str, Any]]:
        """The three lanes that work at the same time, each with its stages in seconds and as shares of wall time; of
        several worker processes the mean, and what one process reads and writes for all of them."""
        c, mean = self.this_run, self._mean_s
        waits = {"wait for input": self.wait_input_s, "wait for output": self.wait_output_s}
        copies = {"transfer": mean(c.transfer_s)} if c.transfer_s else {}
        lanes: list[tuple[str, dict[str, float], dict[str, float]]] = [
            ("read and tokenize", {"read": c.read_s, "tokenize": mean(c.tokenize_s)}, {}),
            ("compute", {"compute": self._device_s, **copies}, waits),
            ("finish and write", {"finish": mean(c.finish_s), "write": c.write_s}, {}),
        ]
        return [self._lane(*lane) for lane in lanes] if self.wall_s else []

    def _lane(self, name: str, busy: dict[str, float], waits: dict[str, float]) -> dict[str, Any]:
        rest = {"other" if waits else "idle": max(self.wall_s - sum(busy.values()) - sum(waits.values()), 0.0)}
        stages = [
            {"name": stage, "seconds": seconds, "share": seconds / self.wall_s, "is_busy": stage in busy}
            for stage, seconds in (busy | waits | rest).items()
        ]
        return {"name": name, "busy_share": sum(busy.values()) / self.wall_s, "stages": stages}

    @property
    def limiting_stage(self) -> str | None:
        """The longest stage of the busiest lane: reading, tokenizing, computing, transferring or writing. None without
        rows."""
        c, mean = self.this_run, self._mean_s
        lanes: list[dict[str, float]] = [
            {"reading": c.read_s, "tokenizing": mean(c.tokenize_s)},
            {"computing": self._device_s, "transferring": mean(c.transfer_s)},
            {"writing": mean(c.finish_s) + c.write_s},
        ]
        busiest = max(lanes, key=lambda lane: sum(lane.values()))
        return max(busiest, key=lambda stage: busiest[stage]) if c.rows else None

    @property
    def idle_share(self) -> float:
        """Of the wall time that the device waited for input or for output."""
        return min((self.wait_input_s + self.wait_output_s) / self.wall_s, 1.0) if self.wall_s else 0.0

    @property
    def idle_cause(self) -> str | None:
        """What the device waited for most: reading, tokenizing or writing; none where that was below HARDLY_IDLE of
        the wall time. None without rows."""
        c = self.this_run
        if not c.rows:
            return None
        if self.idle_share < HARDLY_IDLE:
            return "none"
        if self.wait_output_s > self.wait_input_s:
            return "writing"
        return "reading" if c.read_s > self._mean_s(c.tokenize_s) else "tokenizing"

    @property
    def pinned_share(self) -> float | None:
        """Of the bytes copied between host and device, those from or to pinned memory; None where none were."""
        c = self.this_run
        return _ratio(c.pinned_bytes, c.host_to_device_bytes + c.device_to_host_bytes)

    @property
    def transfers_reason(self) -> str:
        """Why no copies between host and device are counted; empty where some are."""
        if self.this_run.host_to_device_count or self.this_run.device_to_host_count:
            return ""
        if str(self.plan.get("device", "")).startswith("cpu"):
            return "none: the device's memory is the host's"
        return "not counted: this backend moves its inputs by itself"

    @property
    def lengths(self) -> list[dict[str, Any]]:
        """By bucket of token length, shortest first: rows with tokens (of all shards), what was computed of them."""
        c, total = self.counters, sum(self.counters.length_rows.values())
        return [
            {
                "tokens": bucket,
                "rows": c.length_rows[bucket],
                "share": c.length_rows[bucket] / total,
                "real_tokens": c.length_tokens.get(bucket, 0),
                "computed_tokens": c.length_computed.get(bucket, 0),
                "padding_efficiency": _ratio(c.length_tokens.get(bucket, 0), c.length_computed.get(bucket, 0)),
            }
            for bucket in BUCKETS
            if c.length_rows.get(bucket)
        ]

    @property
    def throughput(self) -> list[dict[str, float]]:
        """Rates per second between each sample and the one before it."""
        start = {"elapsed_s": 0.0, "rows": 0.0, "real_tokens": 0.0, "computed_tokens": 0.0}
        return [_rates(before, after) for before, after in zip([start, *self.samples], self.samples, strict=False)]

    @property
    def cost(self) -> float | None:
        """Of wall time and set-up."""
        return None if self.price_per_hour is None else self.price_per_hour * self.total_s / 3_600

    @property
    def cost_per_million_rows(self) -> float | None:
        return None if self.cost is None or not self.this_run.rows else self.cost / self.this_run.rows * 1e6

    @property
    def energy_j_per_row(self) -> float | None:
        return self.energy_j / self.this_run.rows if self.energy_j and self.this_run.rows else None

    def to_dict(self) -> dict[str, Any]:
        """All fields and derived figures, as JSON values."""
        return asdict(self) | {name: getattr(self, name) for name in DERIVED}


def _ratio(part: float, whole: float) -> float | None:
    return part / whole if whole else None


def _rates(before: dict[str, float], after: dict[str, float]) -> dict[str, float]:
    seconds = max(after["elapsed_s"] - before["elapsed_s"], 1e-9)
    rates = {
        f"{name}_per_s": (after[name] - before[name]) / seconds for name in ("rows", "real_tokens", "computed_tokens")
    }
    return {"begin_s": before["elapsed_s"], "end_s": after["elapsed_s"]} | rates
