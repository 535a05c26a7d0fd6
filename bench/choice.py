"""What choosing by itself costs and gains: whole commands of `packhorse run`, the choice left open and made by hand.

    python bench/choice.py --json bench/results/choice-bert-base.json
    python bench/choice.py --model minilm --sst2 3000 --reviews 100 --hands torch:bf16,openvino:bf16

Each way is the command as a person would type it, from start to exit, on the same Parquet file, with an output of its
own. `cold` has an empty cache (nothing measured, nothing converted); `warm` runs again with the cache that the cold one
left; a hand choice that did not run warm counts with its cold run. By hand, --tune off makes no comparison at all: the
backend and precision are taken as said.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import pyarrow as pa
import pyarrow.parquet as pq

from bench import models, workloads
from packhorse.comparison.contract import SEED
from packhorse.comparison.machine import read_machine, read_versions
from packhorse.comparison.rows import save_json

AUTO = "auto"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--model", default="bert-base", help=f"{', '.join(models.NAMES)}, or a folder")
    add("--sst2", type=int, default=60_614, help="rows of SST-2")
    add("--reviews", type=int, default=2_000, help="movie reviews")
    add("--hands", default="torch:bf16,openvino:bf16,torch:fp32", help="BACKEND:PRECISION, by comma")
    add(
        "--warm",
        default="auto",
        help="ways that run warm too, by comma; torch keeps nothing that a second run would use",
    )
    add("--data", type=Path, default=workloads.DEFAULT_DATA)
    add("--json", type=Path)
    arguments = parser.parse_args()
    machine, versions = read_machine(), read_versions(workloads.ROOT)
    with tempfile.TemporaryDirectory(prefix="packhorse-choice-") as scratch:
        rows = write_rows(Path(scratch) / "rows.parquet", arguments)
        runs = list(timed_runs(models.resolve(arguments.model).folder, rows, arguments, Path(scratch)))
    for line in ratios(runs):
        print(line)
    if arguments.json:
        settings = {
            "model": arguments.model,
            "sst2": arguments.sst2,
            "reviews": arguments.reviews,
            "hands": arguments.hands,
        }
        save_json(
            arguments.json,
            {"machine": machine.model_dump(), "versions": versions, "settings": settings, "runs": runs},
        )


def write_rows(path: Path, arguments: argparse.Namespace) -> Path:
    """Sentences and reviews, shuffled."""
    texts = workloads.sst2(arguments.data)[: arguments.sst2] + workloads.reviews(arguments.data)[: arguments.reviews]
    random.Random(SEED).shuffle(texts)
    pq.write_table(pa.table({"text": pa.array(texts, pa.large_string())}), path)
    return path


def timed_runs(model: Path, rows: Path, arguments: argparse.Namespace, scratch: Path) -> Any:
    """One way after the other; each cold, then warm with what the cold run left in its cache."""
    for number, hand in enumerate([AUTO, *filter(None, arguments.hands.split(","))]):
        for state in ("cold", "warm") if hand in arguments.warm.split(",") else ("cold",):
            run = timed(model, rows, hand, scratch / f"{number}-{state}", scratch / f"cache-{number}")
            yield run | {"way": hand, "cache": state}
            print(f"{hand:16} {state}: {run['wall_s']:7.1f} s, {run['chosen']}", flush=True)


def timed(model: Path, rows: Path, hand: str, output: Path, cache: Path) -> dict[str, Any]:
    flags: list[str] = []
    if hand != AUTO:
        backend, _, precision = hand.partition(":")
        flags = ["--backend", backend, "--precision", precision, "--tune", "off"]
    command = [
        sys.executable,
        "-m",
        "packhorse",
        "run",
        str(model),
        str(rows),
        "-o",
        f"{output}/",
        "--progress",
        "none",
    ]
    environment = os.environ | {"XDG_CACHE_HOME": str(cache), "HF_HUB_OFFLINE": "1"}
    begin = time.perf_counter()
    subprocess.run([*command, *flags], env=environment, check=True, stdout=subprocess.DEVNULL)
    wall_s = time.perf_counter() - begin
    report = json.loads((output / "_packhorse/report.json").read_text())
    plan = report["plan"]
    chosen = f"{plan['backend']} {plan['precision']}, {plan['max_batch_tokens']} tokens"
    return {
        "wall_s": wall_s, "chosen": chosen, "rows_per_s": report["rows_per_s"], "tokens_per_s": report["tokens_per_s"],
        "setup_s": report["setup_s"], "rows_s": report["wall_s"], "forecast": plan["forecast"],
        "alternatives": plan["alternatives"],
    }  # fmt: skip


def ratios(runs: list[dict[str, Any]]) -> list[str]:
    """auto against the best hand choice, cold against cold and warm against warm."""
    lines = []
    for state in ("cold", "warm"):
        walls = {run["way"]: run["wall_s"] for run in runs if run["cache"] in ("cold", state)}
        if AUTO not in {run["way"] for run in runs if run["cache"] == state}:
            continue
        hands = {way: wall for way, wall in walls.items() if way != AUTO}
        if hands:
            best = min(hands, key=hands.__getitem__)
            lines.append(f"{state}: auto {walls[AUTO]:.1f} s, best hand choice {best} {hands[best]:.1f} s: "
                         f"{walls[AUTO] / hands[best]:.3f}")  # fmt: skip
    return lines


if __name__ == "__main__":
    main()
