"""What a simulated job comes to, and what the record of one of its shards counts."""

from __future__ import annotations

from dataclasses import dataclass

from packhorse.data import Shard
from packhorse.metrics import Counters

TOKENS_PER_ROW = 13


@dataclass
class Figures:
    """Of one simulated job, in simulated seconds."""

    wall_s: float = 0.0
    busy_s: float = 0.0  # of all devices, for shards that were given back
    lost_s: float = 0.0  # of devices that died in the middle of a shard
    wasted_s: float = 0.0  # for results that came second
    wasted_shards: int = 0
    tail_s: float = 0.0  # from when the first device has nothing more to do
    shards: int = 0
    rows: int = 0
    deaths: int = 0
    restarts: int = 0  # of the whole job, from its last commit: a shard was the end of two workers in a row
    commit_busy_s: float = 0.0  # of the lane that commits
    record_bytes: int = 0
    cpu_us_per_shard: float = 0.0  # of the real code, on the machine that simulates
    efficiency: float = 0.0


def counters_of(shard: Shard) -> Counters:
    """What a real record of so many rows counts, so that it is as long."""
    tokens = TOKENS_PER_ROW * shard.num_rows
    buckets = {str(2**power): shard.num_rows // 6 for power in range(2, 8)}
    return Counters(
        rows=shard.num_rows, real_tokens=tokens, row_tokens=tokens, computed_tokens=tokens, batches=tokens // 16_384,
        length_rows=buckets, length_tokens=buckets, length_computed=buckets, flops=1e9 * tokens,
    )  # fmt: skip
