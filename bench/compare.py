"""Compare packhorse with the ways people use today: same rows, same model, one process each, one table.

`packhorse bench` does it for users; this adds named models, workloads from data files and tolerances.

python bench/compare.py --model bert-base --workload mixed --rows 2000 --contenders pipeline_32,packhorse:bf16
"""

import argparse
import sys
import tempfile
from dataclasses import fields
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from rich.console import Console

from bench import models, workloads
from packhorse.comparison import discover
from packhorse.comparison.compare import run_rounds
from packhorse.comparison.contract import ModelSpec
from packhorse.comparison.machine import read_machine, read_versions
from packhorse.comparison.parity import Tolerances
from packhorse.comparison.rows import save_json
from packhorse.comparison.summary import EndToEnd, Summary, end_to_end, summarize
from packhorse.comparison.table import build_table, console, end_to_end_lines, machine_lines
from packhorse.comparison.trials import Bench, Trial, compute_reference, write_row_files
from packhorse.errors import PackhorseError

PLAIN: dict[str, Any] = {"soft_wrap": True, "highlight": False, "markup": False}


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--workload", choices=workloads.WORKLOADS, help="default: mixed where --data exists, else synthetic")
    add("--model", default="minilm", help=f"{', '.join(models.NAMES)}, or a folder (default: minilm)")
    add("--contenders", help="comma-separated NAME, NAME:PRECISION or NAME:BACKEND:ATTENTION:PRECISION")
    add("--baseline", default="pipeline_32", help="the contender ratios refer to (default: pipeline_32)")
    add(
        "--rows",
        type=int,
        default=1000,
        help="a seeded random sample of the workload; 0: all (default: 1000)",
    )
    add("--slow-rows", type=positive, default=128, help="rows a slow contender is timed on (default: 128)")
    add("--reference-rows", type=positive, default=128, help="rows held against the reference (default: 128)")
    add("--repeat", type=positive, default=1, help="rounds; each runs every contender once (default: 1)")
    add("--data", type=Path, default=workloads.DEFAULT_DATA, help="folder with the data files")
    add("--json", type=Path, metavar="FILE", help="write everything there")
    add(
        "--tolerance-fp32",
        type=float,
        default=Tolerances.fp32,
        help="largest difference (default: %(default)s)",
    )
    add(
        "--tolerance-bf16",
        type=float,
        default=Tolerances.bf16,
        help="same, for scores (default: %(default)s)",
    )
    add("--tolerance-int8", type=float, default=Tolerances.int8, help="same, for scores (default: %(default)s)")
    add("--min-cosine-bf16", type=float, default=Tolerances.min_cosine_bf16, help="for embeddings in bf16")
    add("--min-cosine-int8", type=float, default=Tolerances.min_cosine_int8, help="for embeddings in int8")
    add("--list", action="store_true", help="name the contenders, workloads and models, and stop")
    return parser.parse_args()


def positive(text: str) -> int:
    """A whole number from 1."""
    if int(text) < 1:
        raise ValueError(text)
    return int(text)


def main() -> int:
    """Run the comparison; 1 if a contender failed, else 0."""
    arguments = parse_arguments()
    screen = console()
    if arguments.list:
        print_names(screen)
        return 0
    model = models.resolve(arguments.model)
    contenders = choose_contenders(arguments, model)
    baseline = discover.parse_contender(arguments.baseline, model.task).label
    workload = arguments.workload or workloads.default_name(arguments.data)
    texts = load_texts(workload, arguments)
    machine, versions = read_machine(), read_versions(workloads.ROOT)
    header = [
        *machine_lines(machine, versions),
        f"workload  {workload}, {len(texts):,} rows",
        f"model     {model.name}, {model.task}, max_length {model.max_length}",
    ]
    screen.print("\n".join(header), soft_wrap=True)
    with tempfile.TemporaryDirectory(prefix="packhorse-bench-") as work_dir:
        trials = run_trials(arguments, model, texts, contenders, Path(work_dir), Console(stderr=True))
    summaries, whole = summarize(trials, baseline), end_to_end(trials)
    screen.print(build_table(summaries, baseline))
    screen.print("\n".join(end_to_end_lines(whole)))
    if arguments.json:
        settings = read_settings(arguments, workload, model, texts)
        content = {"machine": machine.model_dump(), "versions": versions, "settings": settings}
        write_json(arguments.json, content, summaries, whole, trials)
    return int(any(summary.error for summary in summaries))


def choose_contenders(arguments: argparse.Namespace, model: ModelSpec) -> list[discover.Contender]:
    """Those named, or all that do the model's task."""
    if not arguments.contenders:
        return discover.default_contenders(model.task)
    return discover.parse_contenders(arguments.contenders, model.task)


def load_texts(workload: str, arguments: argparse.Namespace) -> list[str]:
    """The rows; a missing file ends the program with what would help."""
    try:
        return workloads.load(workload, arguments.data, arguments.rows or None)
    except FileNotFoundError as error:
        raise SystemExit(
            f"--workload {workload}: {error.filename} is missing; give --data, or take synthetic"
        ) from None


def run_trials(
    arguments: argparse.Namespace,
    model: ModelSpec,
    texts: list[str],
    contenders: list[discover.Contender],
    work_dir: Path,
    progress: Console,
) -> list[Trial]:
    """The reference, then every contender in turn, round by round (A B A B)."""
    has_slow = any(contender.is_slow for contender in contenders)
    files = write_row_files(work_dir, texts, arguments.slow_rows, arguments.reference_rows, has_slow)
    reference, cost = compute_reference(model, files, work_dir)
    progress.print(f"reference: {cost.num_rows} rows on {cost.details['device']} in {cost.run_s:.1f} s")
    tolerances = Tolerances(**{field.name: read_tolerance(arguments, field.name) for field in fields(Tolerances)})
    bench = Bench(model, files, reference, tolerances, work_dir)
    return run_rounds(bench, contenders, arguments.repeat, lambda line: progress.print(line, **PLAIN))


def read_tolerance(arguments: argparse.Namespace, name: str) -> float:
    """`fp32` is --tolerance-fp32, `min_cosine_int8` is --min-cosine-int8."""
    return float(getattr(arguments, name if name.startswith("min") else f"tolerance_{name}"))


def read_settings(arguments: argparse.Namespace, workload: str, model: ModelSpec, texts: list[str]) -> dict[str, Any]:
    """What was asked for. Without folders: they say nothing on another machine."""
    asked = {key: value for key, value in vars(arguments).items() if key not in ("data", "json", "list", "model")}
    return asked | {
        "workload": workload,
        "rows": len(texts),
        "characters": sum(map(len, texts)),
        "model": model.told(),
    }


def write_json(
    file: Path, content: dict[str, Any], summaries: list[Summary], whole: list[EndToEnd], trials: list[Trial]
) -> None:
    """Everything the table shows, and every single trial."""
    content["contenders"] = [summary.model_dump() for summary in summaries]
    content["end_to_end"] = [one.model_dump() for one in whole]
    content["trials"] = [trial.told() for trial in trials]
    save_json(file, content)


def print_names(screen: Console) -> None:
    """What can be asked for."""
    for name in discover.contender_names():
        module = discover.contender_module(name)
        line = (module.__doc__ or "").strip().splitlines()[0]
        screen.print(f"contender  {name:26} {'/'.join(module.PRECISIONS):15} {line}", soft_wrap=True)
    for name, workload in workloads.WORKLOADS.items():
        screen.print(f"workload   {name:26} {workload.__doc__}", soft_wrap=True)
    for name, description in models.NAMES.items():
        screen.print(f"model      {name:26} {description}", soft_wrap=True)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except PackhorseError as error:
        sys.exit(f"compare.py: {error}")
