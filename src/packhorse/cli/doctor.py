"""`packhorse doctor`: what is here, what works, and where a model would lie."""

from __future__ import annotations

import json
import os
from typing import Annotated

import typer

from packhorse.cli import flags
from packhorse.cli.flags import Flag
from packhorse.cli.process import set_up

SET_HERE = ("OMP_WAIT_POLICY", "HF_HUB_OFFLINE")


def doctor(
    model: Annotated[
        str | None, typer.Argument(help="Folder of a model, or the id of one in the cache: where would it lie?")
    ] = None,
    task: flags.Task = "auto",
    revision: flags.Revision = None,
    devices: flags.Devices = "auto",
    precision: flags.Precision = "auto",
    measure: Annotated[
        bool, Flag("--measure", help="Time the devices' ceilings, and import packages that take seconds.")
    ] = False,
    as_json: Annotated[bool, Flag("--json", help="JSON on stdout.")] = False,
) -> None:
    """Says what this machine has, what of packhorse works on it and which command mends what does not; with MODEL where
    its parameters, buffers and inputs would lie, and whether it fits. Nothing is downloaded, no weight is read.
    """
    before = {name: os.environ.get(name) for name in SET_HERE}
    os.environ["HF_HUB_OFFLINE"] = "1"  # read when huggingface_hub is imported
    set_up()
    from packhorse.config import EngineConfig, validated
    from packhorse.doctor.examine import examine

    asked = {"task": task, "revision": revision, "devices": devices, "precision": precision}
    settings = None if model is None else validated(EngineConfig, {"model": model} | asked)
    diagnosis = examine(settings, measure, before)
    if as_json:
        typer.echo(json.dumps(diagnosis.to_dict(), indent=1))
        return
    from rich.console import Console

    from packhorse.doctor.text import print_diagnosis

    print_diagnosis(diagnosis, Console(highlight=False))
