"""Generating in bulk, side by side: the ways that people use, transformers' continuous batching, and packhorse.

    python bench/generation.py --json bench/results/generation-llm.json             # 128 prompts: 15 to 20 minutes
    python bench/generation.py --workload t5 --json bench/results/generation-t5.json
    python bench/generation.py --prompts 12 --lengths 4-16 --contenders pipeline_8,static_8,packhorse

Contenders: pipeline_N (llm), pipeline_style_N (t5, bart), static_N, generate_batch_N (llm), packhorse. Each runs in a
process of its own, on the same prompts in the same random order; every output has the length that its prompt's hash
says. The ids of a part of the prompts are held against generate() of each prompt alone, at the same precision.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench import generation_models, workloads
from bench.generation_parity import Outputs, read_outputs, spread
from bench.generation_texts import WORKLOADS, texts_of
from packhorse.comparison.machine import busy_share, read_machine, read_versions
from packhorse.comparison.processes import last_line
from packhorse.comparison.rows import save_json

REFERENCE, USUAL = "reference", ("pipeline_8", "pipeline_style_8")
HEADINGS = ("contender", "generated tok/s", "prompt tok/s", "wall s", "set-up s", "to pipeline", "to best static",
            "peak MiB", "identical ids")  # fmt: skip
MIB = 1024**2


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--workload", choices=sorted(WORKLOADS), default="llm")
    add("--prompts", type=int, default=128)
    add("--lengths", default=None, metavar="MIN-MAX", help="of the outputs, in tokens; llm: 8-256, t5 and bart: 5-100")
    add("--contenders", default=None, help="by comma; by default " + ", then ".join(w.contenders for w in _unique()))
    add("--precision", choices=("fp32", "bf16"), default="fp32")
    add("--repeat", type=int, default=1, help="rounds, A B A B; medians are given (default: %(default)s)")
    add("--reference-prompts", type=int, default=24, help="held against generate() of each alone; 0: none")
    add("--packhorse", type=json.loads, default={}, metavar="JSON", help="further settings of packhorse.load()")
    add("--data", type=Path, default=workloads.DEFAULT_DATA, help="folder with the data files and vocab/")
    add("--json", type=Path, metavar="FILE", help="write everything there")
    return parser.parse_args()


def _unique() -> list[Any]:
    return list(dict.fromkeys(WORKLOADS.values()))


def main() -> None:
    """Every contender in turn, then the table."""
    arguments = parse_arguments()
    workload = WORKLOADS[arguments.workload]
    arguments.lengths = [int(n) for n in (arguments.lengths or workload.lengths).split("-")]
    names = (arguments.contenders or workload.contenders).split(",")
    check_names(names)
    texts = texts_of(arguments.workload, arguments.data, arguments.prompts)
    folder = generation_models.resolve(arguments.workload, arguments.data / "vocab")
    machine, versions = read_machine(), read_versions(workloads.ROOT)
    print(f"{machine.cpu}, {machine.cores} cores, {busy_share():.0%} busy before; {len(texts)} prompts", flush=True)
    checked = spread(len(texts), arguments.reference_prompts)
    expected = None
    if checked:
        _, expected = run(REFERENCE, [texts[row] for row in checked], folder, arguments)
    lines = measured(names, texts, folder, arguments, checked, expected)
    add_ratios(lines)
    print_table(lines)
    if arguments.json:
        settings = {k: v for k, v in vars(arguments).items() if k not in ("json", "data")} | {"contenders": names}
        found = {"machine": machine.model_dump(), "versions": versions, "settings": settings, "contenders": lines}
        save_json(arguments.json, found)
    sys.exit(1 if any("error" in line for line in lines) else 0)


def check_names(names: list[str]) -> None:
    """Raises SystemExit for a contender that is none."""
    for name in names:
        if not re.fullmatch(r"packhorse|(pipeline|pipeline_style|static|generate_batch)_[1-9]\d*", name):
            raise SystemExit(
                f"--contenders {name}: legal are packhorse, pipeline_N, pipeline_style_N, static_N and "
                "generate_batch_N, with N rows at a time"
            )


def measured(
    names: list[str], texts: list[str], folder: Path, arguments: argparse.Namespace, checked: list[int],
    expected: Outputs | None,
) -> list[dict[str, Any]]:  # fmt: skip
    """A line for each contender: figures of the median round."""
    rounds: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    for _ in range(arguments.repeat):
        for name in names:
            try:
                line, outputs = run(name, texts, folder, arguments)
            except ChildError as error:
                rounds[name].append({"error": str(error)})
                print(f"{name:18} failed: {error}", flush=True)
                continue
            if expected is not None:
                line["parity"] = expected.against(outputs, checked)
            rounds[name].append(line)
            print(f"{name:18} {line['wall_s']:7.1f} s", flush=True)
    return [summary(name, rounds[name]) for name in names]


def summary(name: str, rounds: list[dict[str, Any]]) -> dict[str, Any]:
    """The first round's figures, with the median of the times and the least parity of all."""
    failed = next((line for line in rounds if "error" in line), None)
    if failed is not None:
        return {"contender": name, "error": failed["error"]}
    wall_s = median(line["wall_s"] for line in rounds)
    least = min((line["parity"] for line in rounds if "parity" in line), key=lambda p: p["identical"], default=None)
    return {
        **rounds[0], "contender": name, "wall_s": wall_s, "walls_s": [line["wall_s"] for line in rounds],
        "setup_s": median(line["setup_s"] for line in rounds), "parity": least,
        "peak_bytes": max(line["peak_bytes"] for line in rounds),
        "generated_per_s": rounds[0]["generated_tokens"] / wall_s, "prompt_per_s": rounds[0]["prompt_tokens"] / wall_s,
    }  # fmt: skip


class ChildError(Exception):
    """A contender's process failed; the message is the last line it wrote."""


def run(name: str, texts: list[str], folder: Path, arguments: argparse.Namespace) -> tuple[dict[str, Any], Outputs]:
    """A contender in a fresh process. Raises ChildError."""
    shortest, longest = arguments.lengths
    job = {
        "contender": name, "workload": arguments.workload, "folder": str(folder), "texts": texts,
        "precision": arguments.precision, "shortest": shortest, "longest": longest, "settings": arguments.packhorse,
    }  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="packhorse-generation-") as scratch:
        job_file, log = Path(scratch, "job.json"), Path(scratch, "child.log")
        job_file.write_text(json.dumps(job), encoding="utf-8")
        command = [sys.executable, "-m", "bench.generation_contenders", str(job_file)]
        environment = os.environ | {"HF_HUB_OFFLINE": "1"}  # nothing is fetched while the clock runs
        with log.open("wb") as out:
            status = subprocess.run(command, cwd=workloads.ROOT, env=environment, stdout=out, stderr=out).returncode
        if status:
            raise ChildError(last_line(log, status))
        result: dict[str, Any] = json.loads(Path(scratch, "result.json").read_text(encoding="utf-8"))
        return result, read_outputs(Path(scratch, "ids.npz"))


def add_ratios(lines: list[dict[str, Any]]) -> None:
    """Generated tokens/s to those of the usual loop, and to those of the best static batch size."""
    good = [line for line in lines if "error" not in line]
    usual = next((line for line in good if line["contender"] in USUAL), None)
    statics = [line for line in good if line["contender"].startswith("static_")]
    best = max(statics, key=lambda line: line["generated_per_s"], default=None)
    for line in good:
        for ratio, to in (("to_pipeline", usual), ("to_best_static", best)):
            line[ratio] = None if to is None else line["generated_per_s"] / to["generated_per_s"]


def print_table(lines: list[dict[str, Any]]) -> None:
    """Markdown, as it can stand in a README."""
    print("\n| " + " | ".join(HEADINGS) + " |\n|" + "---|" * len(HEADINGS))
    for line in lines:
        cells = [line["contender"], f"failed: {line['error']}"] if "error" in line else cells_of(line)
        print("| " + " | ".join(cells) + " |")


def cells_of(line: dict[str, Any]) -> list[str]:
    ratios = ["" if line[name] is None else f"{line[name]:.2f}" for name in ("to_pipeline", "to_best_static")]
    rates = [f"{line['generated_per_s']:.1f}", f"{line['prompt_per_s']:.1f}"]
    times = [f"{line['wall_s']:.1f}", f"{line['setup_s']:.1f}"]
    return [line["contender"], *rates, *times, *ratios, f"{line['peak_bytes'] / MIB:.0f}", parity_cell(line["parity"])]


def parity_cell(parity: dict[str, Any] | None) -> str:
    if parity is None:
        return ""
    differing = len(parity["differing"])
    near = sum(row["is_near_tie"] for row in parity["differing"])
    what = f", {near} of {differing} others at a near tie" if differing else ""
    return f"{parity['identical']}/{parity['prompts']}{what}"


if __name__ == "__main__":
    main()
