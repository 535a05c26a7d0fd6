"""packhorse's backends as bare loops: rows tokenized and planned beforehand, then forwards alone, one after the other.

No reading, no writing, no threads that prepare the next shard, no dedup: what is left is the model.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any

import numpy as np

from packhorse.comparison.contract import ModelSpec
from packhorse.config import EngineConfig
from packhorse.data import Batch, BatchPlan, Float32s, Int64s, Tokens
from packhorse.loading import Loader
from packhorse.plans import Plan
from packhorse.stages import Output

SAMPLE_ROWS = 1_024  # texts that a backend may see when it loads, for calibration: as many as a run shows it


class BareEngine:
    """A model at one backend, precision and attention."""

    def __init__(
        self, model: ModelSpec, backend: str, precision: str, attention: str, texts: Sequence[str], **settings: Any
    ) -> None:
        """Loads it. settings: further ones of load(). Raises a PackhorseError where the backend cannot."""
        task = "feature-extraction" if model.task == "embedding" else model.task
        what = {"model": str(model.folder), "task": task, "max_length": model.max_length}
        how = {"backend": backend, "precision": precision, "attention": attention}
        config = EngineConfig.model_validate(what | how | settings)
        self._loader = Loader(config)
        self._loader.see(list(texts[:SAMPLE_ROWS]), None)
        self.plan: Plan = self._loader.plan(self._loader.candidate(precision), "text", None)
        self._stages = self._loader.stages(self.plan, keep=[])

    def tokenize(self, texts: Sequence[str]) -> Tokens:
        """The rows' tokens, cut to the model's maximum length."""
        return self._stages.tokenizer.tokenize(texts, None).tokens

    def batches(self, lengths: Int64s) -> BatchPlan:
        """Which rows run together."""
        return self._stages.planner(lengths, self.plan.max_batch_tokens, self.plan.batch_size)

    def forward(self, tokens: Tokens, batches: BatchPlan) -> Float32s:
        """Every row's values, float32 [N, width], in row order."""
        model = self._stages.computing
        values = np.full((tokens.num_rows, model.reduction.width), np.nan, np.float32)
        in_flight: deque[tuple[Int64s, Output]] = deque()
        for b in range(batches.num_batches):
            rows = batches.rows(b)
            in_flight.append((rows, model.forward(Batch(tokens.take(rows)))))
            while len(in_flight) > model.in_flight:
                _collect(in_flight, values)
        while in_flight:
            _collect(in_flight, values)
        return values

    def computed_tokens(self, lengths: Int64s, batches: BatchPlan) -> int:
        """Tokens that these batches compute, padding included."""
        model = self._stages.computing
        return sum(model.computed_tokens(lengths[batches.rows(b)]) for b in range(batches.num_batches))

    def close(self) -> None:
        """Frees the model and the tokenizer's threads."""
        self._stages.tokenizer.close()
        self._loader.close()


def _collect(in_flight: deque[tuple[Int64s, Output]], values: Float32s) -> None:
    rows, output = in_flight.popleft()
    values[rows] = output.numpy()
