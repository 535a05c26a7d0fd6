"""A job on up to 1,000 devices and 10 billion rows, simulated: what they are busy with, and what breaks first.

    python bench/scale_simulation.py [--json bench/results/scale-simulation.json] [--svg docs/scale.svg]
    python bench/scale_simulation.py --rows-per-device 200000 --devices 1,10,100    # for trying: seconds

What is real in it and what is not stands in scale_engine.py. A few minutes, and as many with --ten-billion.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.scale_engine import simulate
from bench.scale_figures import Figures
from bench.scale_picture import picture
from bench.scale_world import HOUR_S, World

TEN_BILLION = 10_000_000_000
COORDINATOR = {"read_s_per_row": 425e-9, "commit_s_per_row": 200e-9}  # scale.py stages: rows of 74 bytes in Parquet
UNEVEN = {"spread": 0.2, "noise": 0.1}
SLOW = {"slow_share": 0.01, "slow_speed": 0.1}
FAILING = {"mtbf_s": 24 * HOUR_S, "restart_s": 120.0}
STORE = {"put_s": (0.05, 0.2)}
RAMP = {"ramp_s": (10.0, 60.0)}
SCENARIOS: dict[str, dict[str, Any]] = {
    "all alike": {},
    "object store": STORE,
    "failures": FAILING,
    "uneven": UNEVEN,
    "uneven, 1% at a tenth": UNEVEN | SLOW,
    "uneven, 1% at a tenth, no backups": UNEVEN | SLOW | {"has_backups": False},
    "object store, one commit at a time": STORE | {"object_commits": 1},
    "all of it": UNEVEN | SLOW | FAILING | STORE | RAMP,
}
ALIKE, ALL = "all alike", "all of it"


def as_json(name: str, world: World, figures: Figures) -> dict[str, Any]:
    """Without what is infinite, which JSON has no word for."""
    given = {key: value for key, value in asdict(world).items() if value != float("inf")}
    rounded = {k: round(v, 4) if isinstance(v, float) else v for k, v in asdict(figures).items()}
    return {"scenario": name, "world": given, **rounded}


def one(name: str, devices: int, rows: int, seed: int, **other: Any) -> dict[str, Any]:
    world = World(devices, rows, seed=seed, **(COORDINATOR | SCENARIOS[name] | other))
    figures, commits = simulate(world)
    if [commit.shard.index for commit in commits] != list(range(figures.shards)) or figures.rows != rows:
        raise SystemExit(f"{name}, {devices} devices: the records are not those of every shard once, in order")
    found = as_json(name, world, figures)
    print(
        f"{name:34} {devices:5} devices {rows:15,} rows: efficiency {figures.efficiency:5.3f}, "
        f"wall {figures.wall_s:9,.0f} s, tail {figures.tail_s:7,.0f} s, deaths {figures.deaths:4}, "
        f"twice {figures.wasted_shards:5} shards, "
        f"committing {figures.commit_busy_s / figures.wall_s:4.2f}, records {figures.record_bytes / 1e6:6.1f} MB, "
        f"{figures.cpu_us_per_shard:5.0f} us a shard",
        flush=True,
    )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--devices", default="1,10,100,1000")
    parser.add_argument("--rows-per-device", type=int, default=1_000_000)
    parser.add_argument("--ten-billion", action="store_true", help="10 billion rows on 1,000 devices instead")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="figures are added to those that stand there")
    parser.add_argument("--svg", type=Path)
    options = parser.parse_args()
    if options.ten_billion:
        found = [one(name, 1_000, TEN_BILLION, options.seed) for name in (ALIKE, ALL)]
    else:
        counts = [int(count) for count in options.devices.split(",")]
        found = [one(n, d, d * options.rows_per_device, options.seed) for n in SCENARIOS for d in counts]
    if options.json:
        _add(options.json, "ten_billion" if options.ten_billion else "curves", found)
    if options.svg and not options.ten_billion:
        options.svg.parent.mkdir(exist_ok=True)
        options.svg.write_text(picture(found))


def _add(path: Path, key: str, found: list[dict[str, Any]]) -> None:
    known = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps(known | {key: found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
