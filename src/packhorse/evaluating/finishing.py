"""A shard's values as the columns that a run writes, for metrics of what only the host has."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pyarrow as pa

from packhorse.data import Bools
from packhorse.evaluating.device import DeviceValues
from packhorse.evaluating.measures import NOT_FINITE
from packhorse.forwarding import all_errors
from packhorse.sequences import Results
from packhorse.shard import Stages
from packhorse.tokenize.dedup import all_rows


class Finished(NamedTuple):
    table: pa.Table  # the task's columns
    is_valid: Bools  # [rows] which have a prediction
    not_finite: int  # rows whose values are not


def finished(found: DeviceValues, stages: Stages) -> Finished:
    """One copy from the device."""
    tokenized, reduction = found.tokenized, stages.model.reduction
    values = found.on_host(reduction)
    errors = {**all_errors(values, tokenized, all_rows(tokenized.tokens), {}, stages.task.max_value), **found.errors}
    is_valid = np.ones(len(found.texts.texts), np.bool_)
    is_valid[list(errors)] = False
    results = Results(values, is_valid, tokenized, found.texts.texts, found.texts.pairs, stages.read_vocabulary)
    table = pa.Table.from_arrays(stages.task.finish(results), schema=pa.schema(stages.task.fields(reduction.width)))
    return Finished(table, is_valid, sum(error.kind == NOT_FINITE for error in errors.values()))
