"""`packhorse bench`: ways to run a model side by side, on this machine, this model and these rows."""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from packhorse.cli import flags
from packhorse.cli.flags import Flag


def bench(
    model: flags.Model,
    input: Annotated[
        str | None, typer.Argument(help="File, folder or glob of Parquet or JSONL; without it rows are made up.")
    ] = None,
    models: Annotated[
        list[str] | None,
        Flag("--model", help="A further model to hold against MODEL: speed, size, agreement. Can be repeated."),
    ] = None,
    rows: Annotated[int, Flag(help="Rows drawn evenly from INPUT, with a fixed seed.")] = 500,
    contenders: Annotated[
        str | None, Flag(help="By comma: NAME, or NAME with a backend, batch size or precision: packhorse:onnx:int8.")
    ] = None,
    levels: Annotated[
        Literal["quick", "full"], Flag(help="full: torch.compile, and sweeps of batch size and maximum length too.")
    ] = "quick",
    baseline: Annotated[
        str | None, Flag(help="Contender that ratios refer to; default pipeline_32, else the first.")
    ] = None,
    repeat: Annotated[int, Flag(help="Rounds; each runs every contender once, and medians are shown.")] = 1,
    slow_rows: Annotated[int, Flag(help="Rows that a slow contender is timed on.")] = 64,
    time_limit: Annotated[float, Flag(help="Seconds for a contender in a round, set-up included.")] = 120,
    text_column: flags.TextColumn = None,
    task: flags.Task = "auto",
    max_length: flags.MaxLength = None,
    revision: flags.Revision = None,
    json: Annotated[Path | None, Flag(metavar="FILE", help="Write everything there, as JSON.")] = None,
    html: Annotated[Path | None, Flag(metavar="FILE", help="Write tables and plots there, as one page.")] = None,
) -> None:
    """Times MODEL on rows of INPUT in the ways people use, with each lever added, and with packhorse.

    Each contender runs in a process of its own. No ratio is shown where outputs differ from plain transformers', row
    by row in fp32. With --model: packhorse on each model, and how far their outputs agree.
    """
    settings = dict(locals())
    signal.signal(signal.SIGTERM, lambda signum, frame: sys.exit(128 + signum))  # contenders end on the way out
    from rich.console import Console

    from packhorse import api
    from packhorse.comparison.compare import check_target
    from packhorse.comparison.table import console, print_comparison, print_lines

    progress = Console(stderr=True, highlight=False)
    names = [settings.pop("model"), *(settings.pop("models") or [])]
    files = {kind: settings.pop(kind) for kind in ("json", "html")}
    for kind, file in files.items():
        if file is not None:
            check_target(f"--{kind}", file)
    found = api.bench(names, settings.pop("input"), say=lambda line: print_lines(progress, [line]), **settings)
    print_comparison(console(), found)
    if files["json"]:
        found.save_json(files["json"])
    if files["html"]:
        found.save_html(files["html"])
