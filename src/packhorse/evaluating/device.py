"""A shard's values, computed like those of a run and left on the device."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import numpy as np
import torch

from packhorse.data import Batch, Reduction, RowError, Tokens
from packhorse.errors import BatchRefusedError, DeviceOutOfMemoryError
from packhorse.readers.cut import ShardRows
from packhorse.sequences import Ragged, Tokenized, Values, num_values
from packhorse.shard import Budget, Prepared, Stages, Texts, prepare
from packhorse.stages import LoadedModel

OnBatch = Callable[[float], None]  # how much more of the shard, as a share, was handed to the device


class DeviceValues(NamedTuple):
    """Of a shard: values [lines, width] on the device, sequence by sequence; first lines of the sequences
    [sequences + 1] on the host; what they are values of; rows without a prediction."""

    values: torch.Tensor
    offsets: np.ndarray
    tokenized: Tokenized
    texts: Texts
    errors: dict[int, RowError]

    def on_host(self, reduction: Reduction) -> Values:
        """As a run has them: one copy from the device. Of a dense reduction NaN for sequences without values."""
        values = self.values.float().cpu().numpy()
        if reduction.per != "row":
            return Ragged(values, self.offsets)
        lines = np.diff(self.offsets)
        dense = np.full((len(lines), values.shape[1]), np.nan, np.float32)
        dense[lines > 0] = values
        return dense


@dataclass(slots=True)
class Halving:
    """The budget of batches, lowered where one does not fit."""

    budget: Budget

    def values_of(self, rows: ShardRows, stages: Stages, on_batch: OnBatch = lambda rows: None) -> DeviceValues:
        """Of all sequences of a shard."""
        prepared = prepare(rows, stages, self.budget)
        while True:
            try:
                return _computed(prepared, stages, on_batch)
            except DeviceOutOfMemoryError:
                self.budget = self.budget.halved()
                prepared = prepare(rows, stages, self.budget)


def _computed(prepared: Prepared, stages: Stages, on_batch: OnBatch) -> DeviceValues:
    model, tokens, unique = stages.computing, prepared.tokenized.tokens, prepared.unique
    waiting: deque[tuple[np.ndarray, Any]] = deque()
    parts: list[tuple[np.ndarray, np.ndarray, torch.Tensor]] = []
    failed: dict[int, RowError] = {}

    def collect() -> None:
        sequences, started = waiting.popleft()
        parts.extend(_lines(model, tokens, sequences, started, failed))
        on_batch(len(sequences) / tokens.num_rows)

    for b in range(prepared.plan.num_batches):
        sequences = unique.rows[prepared.plan.rows(b)]
        waiting.append((sequences, _started(model, tokens, sequences)))
        if len(waiting) > model.in_flight:
            collect()
    while waiting:
        collect()
    values, offsets = _in_order(parts, tokens.num_rows, model)
    row_of = prepared.tokenized.row_of
    errors = dict(prepared.tokenized.errors)
    errors |= {int(s if row_of is None else row_of[s]): error for s, error in failed.items()}
    return DeviceValues(values, offsets, prepared.tokenized, prepared.texts, errors)


def _started(model: LoadedModel, tokens: Tokens, sequences: np.ndarray) -> Any:
    """Values on their way; or the exception."""
    batch = Batch(tokens.take(sequences))
    try:
        return model.on_device(batch) if hasattr(model, "on_device") else model.forward(batch)
    except (DeviceOutOfMemoryError, BatchRefusedError) as error:
        return error


def _lines(
    model: LoadedModel, tokens: Tokens, sequences: np.ndarray, started: Any, failed: dict[int, RowError]
) -> list[tuple[np.ndarray, np.ndarray, torch.Tensor]]:
    """Sequences, lines of each, values; one by one where the model refuses them together."""
    try:
        values = _tensor(started)
    except DeviceOutOfMemoryError as error:
        if len(sequences) > 1:
            raise
        failed[int(sequences[0])] = RowError("out_of_memory", f"the row alone does not fit on the device: {error}")
        return []
    except BatchRefusedError as error:
        if len(sequences) == 1:
            failed[int(sequences[0])] = RowError("refused_by_model", str(error))
            return []
        alone = [(np.array([s]), _started(model, tokens, np.array([s]))) for s in sequences]
        return [part for s, one in alone for part in _lines(model, tokens, s, one, failed)]
    counts = num_values(model.reduction, tokens.take(sequences), cast(Any, values))
    return [(sequences, np.ones(len(sequences), np.int64) if counts is None else counts, values)]


def _tensor(started: Any) -> torch.Tensor:
    """Waits for a worker of the host, never for the device."""
    if isinstance(started, Exception):
        raise started
    if isinstance(started, Future):
        started = started.result()
    found: torch.Tensor = started if isinstance(started, torch.Tensor) else torch.from_numpy(started.numpy())
    return found


def _in_order(
    parts: list[tuple[np.ndarray, np.ndarray, torch.Tensor]], num_sequences: int, model: LoadedModel
) -> tuple[torch.Tensor, np.ndarray]:
    """Values by sequence, and where each one's begin. One copy of places to the device."""
    lengths = np.zeros(num_sequences, np.int64)
    for sequences, counts, _ in parts:
        lengths[sequences] = counts
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    if not parts:
        return torch.zeros(0, model.reduction.width, device=device_of(model)), offsets
    places = [np.repeat(offsets[s] - (np.cumsum(c) - c), c) + np.arange(c.sum()) for s, c, _ in parts]
    order = np.empty(int(offsets[-1]), np.int64)
    order[np.concatenate(places)] = np.arange(len(order))
    values = torch.cat([values for _, _, values in parts])
    return values[moved(order, values.device)], offsets


def device_of(model: Any) -> str:
    """Where the values of a model lie: a backend without on_device gives them to the host."""
    return str(model.device) if hasattr(model, "on_device") else "cpu"


def moved(array: np.ndarray, device: torch.device | str) -> torch.Tensor:
    """To the device, without waiting for it."""
    tensor = torch.from_numpy(np.ascontiguousarray(array))
    if torch.device(device).type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)
