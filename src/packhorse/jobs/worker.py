"""A worker process of a job with several devices: `python -m packhorse.jobs.worker FD`, started by the coordinator."""

from __future__ import annotations

import dataclasses
import os
import signal
import sys
from dataclasses import dataclass
from datetime import datetime
from multiprocessing.connection import Connection

import pyarrow as pa

from packhorse.config import EngineConfig, RunConfig
from packhorse.devices.cores import pin
from packhorse.executors.process import SIGNALS
from packhorse.executors.wire import Wire
from packhorse.executors.worker import Inbox, serve
from packhorse.loading import Loader
from packhorse.loading.loader import CALIBRATED
from packhorse.plans import Plan
from packhorse.readers.sample import Sample
from packhorse.selection import prompts_of
from packhorse.shard import Stages

MODULE = __name__ if __name__ != "__main__" else "packhorse.jobs.worker"


@dataclass(frozen=True)
class WorkerSpec:
    """All that a worker is told, as plain data."""

    settings: EngineConfig  # of the loader; its device is the worker's
    config: RunConfig
    plan: Plan  # with the worker's share of forwards at the same time, and of tokenizer threads
    planned_workers: int  # of the job's plan: batches are cut for as many, whoever computes them
    sample: Sample  # rows of the job that precision, packing and scales are tried on
    adds_special_tokens: bool
    schema: pa.Schema  # of the input
    now: datetime  # that chat templates are told
    cores: list[int] | None  # to stay on


def load(spec: WorkerSpec) -> Stages:
    """The stages as in one process. Raises a PackhorseError."""
    # Scales of int8 come from sums over all cores: pinned before, they would be those of fewer threads.
    is_calibrated = spec.plan.precision in CALIBRATED
    if spec.cores is not None and not is_calibrated:
        pin(spec.cores)
    loader = Loader(spec.settings)
    sample = spec.sample
    loader.see(sample.texts[0], sample.pairs, sample.is_whole, spec.adds_special_tokens)
    loader.replay(spec.plan)
    prompts = prompts_of(spec.config, loader.description, spec.schema, spec.now)
    stages = loader.stages(spec.plan, [], spec.config.output_prefix, prompts, spec.config.seed_column)
    if spec.cores is not None and is_calibrated:
        pin(spec.cores)
    return dataclasses.replace(stages, workers=spec.planned_workers)


def main() -> None:
    descriptor = int(sys.argv[1])
    os.set_inheritable(descriptor, False)
    for signum in SIGNALS:  # the coordinator stops us; a handler, and not SIG_IGN, since processes of ours inherit that
        signal.signal(signum, lambda *_: None)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    wire = Wire(Connection(descriptor))
    serve(wire, Inbox(wire), load)


if __name__ == "__main__":
    # Messages name this module's types; the one that runs as __main__ has others of the same names.
    from packhorse.jobs.worker import main as run

    run()
