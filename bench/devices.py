"""Several processes against one on this machine's processor: whole commands, in turn (A B A B), outputs compared.

    python bench/devices.py [--model bert-base] [--rows 4000] [--pairs 3] [--devices cpu cpu:2] [--precision bf16]

Each command runs alone, from its start to its end, set-up included, on the same rows and with --tune off, so that the
plan is the same. Prints seconds of the command and rows/s of the report (first row read to last commit) for each, the
medians and their ratio, whether the parts are the same byte for byte, and how busy each worker was. On GPUs:
--devices cuda:0 cuda:0,cuda:1.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.models import resolve

MEAN_WORDS, MOST_WORDS = 40, 300


class Timed(NamedTuple):
    command_s: float
    report: dict[str, Any]
    digest: str  # sha256 over all parts


def write_rows(path: Path, tokenizer_file: Path, num_rows: int) -> None:
    """Distinct rows of words from the model's vocabulary, of lengths as in news: most short, some long."""
    vocabulary = json.loads(tokenizer_file.read_text(encoding="utf-8"))["model"]["vocab"]
    words = np.array([word for word in vocabulary if word.isalpha() and len(word) > 2])
    rng = np.random.default_rng(0)
    lengths = np.minimum(rng.lognormal(np.log(MEAN_WORDS) - 0.3, 0.8, num_rows).astype(int) + 2, MOST_WORDS)
    texts = [f"{row} " + " ".join(rng.choice(words, length)) for row, length in enumerate(lengths)]
    pq.write_table(pa.table({"text": pa.array(texts, pa.large_string())}), path)


def timed(model: Path, rows: Path, output: Path, devices: str, flags: list[str]) -> Timed:
    """One whole command."""
    command = [sys.executable, "-m", "packhorse", "run", str(model), str(rows), "-o", f"{output}/"]
    begin = time.perf_counter()
    subprocess.run(
        [*command, "--devices", devices, "--tune", "off", "--quiet", *flags],
        check=True, env=os.environ | {"HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    command_s = time.perf_counter() - begin
    digest = hashlib.sha256(b"".join(part.read_bytes() for part in sorted(output.glob("part-*")))).hexdigest()
    return Timed(command_s, json.loads((output / "_packhorse" / "report.json").read_text()), digest)


def show(devices: str, run: Timed) -> None:
    workers = ", ".join(f"{w['rows']:,} rows {w['busy_share']:.0%} busy" for w in run.report["workers"])
    rates = f"{run.report['rows_per_s']:8.1f} rows/s {run.report['tokens_per_s']:10,.0f} tokens/s"
    print(f"{devices:>16} {run.command_s:7.1f} s {rates}  {workers}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="bert-base")
    parser.add_argument("--rows", type=int, default=4_000)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--devices", nargs=2, default=["cpu", "cpu:2"])
    parser.add_argument("--precision", default="bf16")
    parser.add_argument("--shard-rows", type=int, default=500)
    asked = parser.parse_args()
    flags = ["--precision", asked.precision, "--shard-rows", str(asked.shard_rows), "--no-dedup"]
    folder = Path(resolve(asked.model).folder)
    with tempfile.TemporaryDirectory() as scratch:
        rows = Path(scratch) / "rows.parquet"
        write_rows(rows, folder / "tokenizer.json", asked.rows)
        runs: dict[str, list[Timed]] = {devices: [] for devices in asked.devices}
        for pair in range(asked.pairs):
            for number, devices in enumerate(asked.devices):
                runs[devices].append(timed(folder, rows, Path(scratch) / f"out-{pair}-{number}", devices, flags))
                show(devices, runs[devices][-1])
    first, second = (runs[devices] for devices in asked.devices)
    for name, figure in (("rows/s", lambda r: r.report["rows_per_s"]), ("1 / command", lambda r: 1 / r.command_s)):
        ratio = statistics.median(map(figure, second)) / statistics.median(map(figure, first))
        print(f"{asked.devices[1]} / {asked.devices[0]}, medians of {name}: {ratio:.3f}")
    print("the same bytes" if len({run.digest for run in (*first, *second)}) == 1 else "DIFFERENT BYTES")


if __name__ == "__main__":
    main()
