"""What a job would be, before anything of it runs: lengths, ways, batches, time, memory and cost, from a sample."""

from __future__ import annotations

import dataclasses
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from packhorse.batching import planner
from packhorse.config import RunConfig, validated
from packhorse.data import Int64s
from packhorse.explanation import BatchFigures, Explanation
from packhorse.histogram import by_length
from packhorse.loading import Loader
from packhorse.loading.choosing import Texts, choose
from packhorse.loading.foreseeing import foresee
from packhorse.loading.predicting import predicted
from packhorse.plans import Plan
from packhorse.readers import open_input
from packhorse.readers.cut import MAX_ROWS
from packhorse.readers.options import ReaderOptions
from packhorse.selection import choose_columns, sample_of
from packhorse.stages import Reader

SHOWN_BATCHES = 7
NO_FILE = "plan.parquet"  # settings of a run need an output; none is made


def explain(model: str | Path, input: str | Path, **settings: Any) -> Explanation:
    """What a job would be. Reads a sample of the input and runs nothing of it; with tune="quick" or "full" ways are
    measured on that sample, and what is found is kept for the job.

    settings: those of run(); tune is "off" here unless it is given. Raises a PackhorseError.
    """
    begin = time.perf_counter()
    values = {"tune": "off", "model": str(model), "input": str(input), "output": NO_FILE} | settings
    config: RunConfig = validated(RunConfig, values)
    reader = open_input(config.input, options=ReaderOptions.of(config))
    loader = Loader(config.on_first_device())
    try:
        if loader.description.writes:
            return dataclasses.replace(_writing(config, loader, reader), seconds=time.perf_counter() - begin)
        columns = choose_columns(config, loader.task, loader.description, reader, datetime.now())
        texts = Texts(columns.text, columns.pair)
        sample = sample_of(reader, columns, config.limit)
        loader.see(sample.texts[0], sample.pairs, sample.is_whole)
        found = _measured(loader, sample.total_rows, texts) if config.tune != "off" else None
        explanation = _explained(config, loader, sample.total_rows, found)
    finally:
        loader.close()
    return dataclasses.replace(explanation, seconds=time.perf_counter() - begin)


def _writing(config: RunConfig, loader: Loader, reader: Reader) -> Explanation:
    columns = choose_columns(config, loader.task, loader.description, reader, datetime.now())
    sample = sample_of(reader, columns, config.limit)
    loader.see(sample.texts[0], None, sample.is_whole, columns.adds_special_tokens)
    foreseen = foresee(loader, sample.total_rows)
    plan = _measured(loader, sample.total_rows, Texts(columns.text, None)) if config.tune != "off" else None
    lengths = loader.material.lengths
    return Explanation(
        model=config.model, input=config.input, forecast=(plan and plan.forecast) or foreseen.forecast,
        alternatives=plan.alternatives if plan else (), lengths=by_length(lengths[lengths > 0]),
        longest=int(lengths.max(initial=0)), truncated_rows=loader.material.truncated_rows,
        batching="", num_batches=0, planned_rows=0, price_per_hour=config.price_per_hour, plan=plan,
        task=loader.description.task, rows_at_once=plan.batch_size if plan else foreseen.rows_at_once,
        max_new_tokens=plan.max_new_tokens if plan else foreseen.max_new_tokens,
        weight_bytes=foreseen.need.weights_bytes if foreseen.need else None,
        memory=foreseen.memory(), advice=foreseen.advice,
    )  # fmt: skip


def _measured(loader: Loader, total_rows: float, texts: Texts) -> Plan:
    taken, plan = choose(loader, total_rows, texts)
    taken.close()
    return plan


def _explained(config: RunConfig, loader: Loader, total_rows: float, plan: Plan | None) -> Explanation:
    guess = predicted(loader, total_rows)
    policy = plan.batching if plan else guess.batching
    lengths = loader.material.lengths
    planned_rows, each = min(int(total_rows), MAX_ROWS), loader.material.sequences_per_row
    planned = _planned(lengths[lengths > 0], planned_rows * each)
    budget = (plan or guess.alternatives[0]).max_batch_tokens
    batches = _batches(planned, policy, budget, config.batch_size)
    computed = sum(b.computed_tokens for b in batches)
    return Explanation(
        model=config.model, input=config.input, forecast=(plan and plan.forecast) or guess.forecast,
        alternatives=(plan.alternatives if plan else ()) or guess.alternatives,
        lengths=by_length(lengths[lengths > 0]), longest=int(lengths.max(initial=0)),
        truncated_rows=loader.material.truncated_rows, batching=policy, num_batches=len(batches),
        planned_rows=planned_rows, batches=_shown(batches), sequences_per_row=each,
        padding_efficiency=sum(b.real_tokens for b in batches) / computed if computed else 1.0,
        weight_bytes=guess.weight_bytes, batch_bytes=guess.batch_bytes(budget),
        price_per_hour=config.price_per_hour, plan=plan,
    )  # fmt: skip


def _planned(lengths: Int64s, sequences: float) -> Int64s:
    """Lengths of a shard of so many as the job will have it: drawn from the sample's, a fixed draw."""
    count = round(sequences) if len(lengths) else 0
    return np.random.default_rng(0).choice(lengths, count) if count > len(lengths) else lengths[:count]


def _batches(lengths: Int64s, policy: str, budget: int, batch_size: int | None) -> list[BatchFigures]:
    plan = planner(policy)(lengths, budget, batch_size)
    found = []
    for number in range(plan.num_batches):
        rows = lengths[plan.rows(number)]
        real, longest = int(rows.sum()), int(rows.max())
        computed = real if policy == "packed" else longest * len(rows)
        found.append(BatchFigures(number, len(rows), int(rows.min()), longest, real, computed))
    return found


def _shown(batches: list[BatchFigures]) -> list[BatchFigures]:
    """The first, the last, and some at even steps between."""
    count = min(len(batches), SHOWN_BATCHES)
    return [batches[i * (len(batches) - 1) // max(count - 1, 1)] for i in range(count)]
