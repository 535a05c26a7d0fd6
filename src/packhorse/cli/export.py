"""`packhorse export`: a model as a folder for another engine."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from packhorse.cli import flags
from packhorse.cli.flags import Flag
from packhorse.cli.process import set_up


def export(
    model: flags.Model,
    folder: Annotated[str, typer.Argument(help="A new or empty folder.")],
    backend: Annotated[Literal["onnx", "openvino"], Flag(help="What the folder is for.")] = "onnx",
    precision: Annotated[Literal["fp32", "fp16", "bf16", "int8"], Flag(help="Of the written weights.")] = "fp32",
    calibration: Annotated[
        str | None, Flag(help="Parquet or JSONL whose first 1,024 rows set the scales of int8.")
    ] = None,
    text_column: Annotated[str | None, Flag(help="Column with the text of --calibration.")] = None,
    task: flags.Task = "auto",
    provider: Annotated[str, Flag(help="ONNX Runtime's execution provider that the graph is meant for.")] = "auto",
    revision: flags.Revision = None,
    adapter: flags.Adapter = None,
) -> None:
    """Writes MODEL as a folder that ONNX Runtime or OpenVINO runs as it stands: `packhorse run FOLDER ...`."""
    settings = dict(locals())
    set_up()
    from packhorse import exporting

    done = exporting.export(settings.pop("model"), settings.pop("folder"), **settings)
    typer.echo(
        f"{done.folder}: {done.backend}, {done.precision}, {done.num_bytes / 2**20:,.0f} MiB, written in "
        f"{done.seconds:.0f} s"
    )
