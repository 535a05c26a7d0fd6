"""Continuous batching: a row leaves at the step that finishes it, and waiting prompts take its place.

Nothing is padded: prompts are packed into one sequence, and a step is a sequence of one token of each running row.
The schedule is a function of prompts, settings and tokens, never of time, so that a run and its resumption agree.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from packhorse.backends.torch.generation.memory import out_of_memory_named
from packhorse.backends.torch.generation.packed_decoder import PackedDecoder
from packhorse.backends.torch.generation.prefixes import common_prefix, goes_on_from
from packhorse.backends.torch.generation.running_batch import Keys, PackedBatch, RunningBatch
from packhorse.backends.torch.generation.static import empty_prompts, rows_of
from packhorse.backends.torch.generation.stepping import Row, Stepper, generated
from packhorse.data import Int32s
from packhorse.errors import UsageError
from packhorse.generation import Generated, Prompts
from packhorse.stages import OnStep

# Prompts enter once one in so many slots is free: a forward over one prompt costs much of what one over several does.
REFILL_SHARE = 8


@dataclass(frozen=True, slots=True)
class Waiting:
    """A prompt, and those of its samples that run together."""

    prompt: Int32s
    rows: Sequence[Row]


@dataclass(eq=False, slots=True)
class Writing:
    row: Row
    length: int

    @property
    def last_id(self) -> int:
        return self.row.last_id


class ContinuousEngine:
    """For models that the probe (continuous_probe.py) found right."""

    engine = "continuous"

    def __init__(self, model: Any, stepper: Stepper, device: str) -> None:
        """Raises UsageError where the decoding asked for takes transformers' own generate()."""
        if stepper.needs_library is not None:
            raise UsageError(f"--engine continuous cannot do this: {stepper.needs_library}. Use --engine generate.")
        self._stepper, self._device = stepper, device
        self._decoder = PackedDecoder(model, device)

    def generate(self, prompts: Prompts, max_rows: int, max_prefill_tokens: int, on_step: OnStep) -> Generated:
        """max_rows: outputs that run at a time. max_prefill_tokens: of a forward over prompts; longer ones are computed
        in pieces. on_step gets the outputs finished and the tokens computed. Raises DeviceOutOfMemoryError."""
        with out_of_memory_named(self._device), self._decoder.installed():
            batch: PackedBatch[Writing] = PackedBatch(self._decoder)
            return write(batch, self._stepper, prompts, max_rows, max_prefill_tokens, on_step)


def write(
    batch: RunningBatch[Writing], stepper: Stepper, prompts: Prompts, max_rows: int, max_prefill_tokens: int,
    on_step: OnStep,
) -> Generated:  # fmt: skip
    """All prompts, in an empty batch; as ContinuousEngine.generate() says."""
    rows = rows_of(stepper, prompts, None)
    waiting = _queue(rows, prompts, stepper.num_samples, max_rows)
    _Job(batch, stepper, waiting, max_rows, max_prefill_tokens, on_step).run()
    errors = empty_prompts(prompts.tokens)
    return generated(rows, prompts.num_rows, stepper.num_samples, stepper.with_logprobs, errors)


def _queue(rows: Sequence[Row], prompts: Prompts, samples: int, max_rows: int) -> deque[Waiting]:
    """The longest prompts first, so that neighbours have equal lengths and memory peaks at the start. A row that may
    write nothing is done already."""
    lengths = prompts.tokens.lengths
    waiting: deque[Waiting] = deque()
    for i in np.argsort(-lengths, kind="stable").tolist():
        mine = [row for row in rows[i * samples : (i + 1) * samples] if lengths[i] and not row.is_done]
        waiting.extend(Waiting(mine[0].prompt, mine[j : j + max_rows]) for j in range(0, len(mine), max_rows))
    return waiting


class _Job:
    """One call of generate()."""

    def __init__(
        self, batch: RunningBatch[Writing], stepper: Stepper, waiting: deque[Waiting], max_rows: int, max_tokens: int,
        on_step: OnStep,
    ) -> None:  # fmt: skip
        self._batch, self._stepper, self._waiting, self._on_step = batch, stepper, waiting, on_step
        self._max_rows, self._max_tokens = max_rows, max_tokens
        self._rows_left = sum(len(w.rows) for w in waiting)
        self._prefix: Int32s = common_prefix([w.prompt for w in waiting])
        self._prefix_keys: Keys | None = None

    def run(self) -> None:
        if len(self._prefix):
            _, self._prefix_keys, computed = self._pieces(self._prefix, None)
            self._on_step(0, computed)
        while self._waiting or self._batch.num_running:
            if self._may_enter(self._batch.num_running):
                self._enter()
            else:
                self._step()
        if self._prefix_keys is not None:
            self._batch.forget([self._prefix_keys])

    # -- prompts

    def _may_enter(self, num_running: int) -> bool:
        free = self._max_rows - num_running
        if not self._waiting or len(self._waiting[0].rows) > free:
            return False
        return not num_running or free >= min(max(self._max_rows // REFILL_SHARE, 1), self._rows_left)

    def _enter(self) -> None:
        """All that there is room for."""
        free = self._max_rows - self._batch.num_running
        entering: list[Waiting] = []
        while self._waiting and len(self._waiting[0].rows) <= free:
            entering.append(self._waiting.popleft())
            free -= len(entering[-1].rows)
            self._rows_left -= len(entering[-1].rows)
        behind = [w for w in entering if goes_on_from(w.prompt, self._prefix)]
        for batch in _batches(behind, self._max_tokens, len(self._prefix)):
            self._prefill(batch, self._prefix_keys, len(self._prefix))
        alone = [w for w in entering if not goes_on_from(w.prompt, self._prefix)]
        for batch in _batches(alone, self._max_tokens, 0):
            self._prefill(batch, None, 0)

    def _prefill(self, batch: Sequence[Waiting], prefix: Keys | None, before: int) -> None:
        """before: tokens of the prefix, which are already computed."""
        texts = [w.prompt[before:] for w in batch]
        if len(texts) == 1:
            logits, keys, computed = self._pieces(texts[0], prefix)
            self._begin(batch, logits, [keys], computed)
        else:
            logits, all_keys = self._batch.prefill(texts, prefix)
            self._begin(batch, logits, all_keys, sum(map(len, texts)))

    def _pieces(self, text: Int32s, prefix: Keys | None) -> tuple[torch.Tensor, Keys, int]:
        """A text that may be longer than a forward, piece by piece: logits [1, V] behind it, its keys, and the last
        piece's tokens. on_step is told of the other pieces."""
        behind, starts = prefix, range(0, len(text), self._max_tokens)
        for start in starts:
            piece = text[start : start + self._max_tokens]
            logits, (keys,) = self._batch.prefill([piece], behind)
            if start > 0:
                self._batch.forget([behind])
            if start != starts[-1]:
                self._on_step(0, len(piece))
            behind = keys
        return logits, behind, len(piece)

    def _begin(self, batch: Sequence[Waiting], logits: torch.Tensor, keys: Sequence[Keys], computed: int) -> None:
        """The first token of every row; those that go on enter."""
        rows = [row for w in batch for row in w.rows]
        of_prompt = [i for i, w in enumerate(batch) for _ in w.rows]
        if len(rows) > len(batch):
            logits = logits[torch.tensor(of_prompt, device=logits.device)]
        self._stepper.step(rows, logits)
        for row, i in zip(rows, of_prompt, strict=True):
            if not row.is_done:
                self._batch.enter(Writing(row, len(batch[i].prompt)), keys[i])
        self._batch.forget(keys)
        self._on_step(sum(row.is_done for row in rows), computed)

    # -- running rows

    def _step(self) -> None:
        running, logits = self._batch.decode()
        self._stepper.step([r.row for r in running], logits)
        finished = [r for r in running if r.row.is_done]
        if finished:
            self._batch.leave(finished)
        self._on_step(len(finished), len(running))


def _batches(waiting: Sequence[Waiting], max_tokens: int, before: int) -> Iterator[list[Waiting]]:
    """Of at most so many tokens, or one prompt. before: tokens of each that are not computed."""
    batch: list[Waiting] = []
    tokens = 0
    for w in waiting:
        size = len(w.prompt) - before
        if batch and tokens + size > max_tokens:
            yield batch
            batch, tokens = [], 0
        batch.append(w)
        tokens += size
    if batch:
        yield batch
