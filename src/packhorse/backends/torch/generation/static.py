"""Batches that begin together: prompts sorted by length, finished rows leave, the others go on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from packhorse.backends.torch.generation.memory import out_of_memory_named
from packhorse.backends.torch.generation.proving import prove
from packhorse.backends.torch.generation.rows import RunningRows, decoder_start_of
from packhorse.backends.torch.generation.stepping import Row, Stepper, generated
from packhorse.data import Int32s, Int64s, RowError, Tokens
from packhorse.errors import UsageError
from packhorse.generation import Generated, Prompts
from packhorse.stages import OnStep

# Finished rows leave once they are one in so many of those that run: leaving copies the cache.
LEAVE_SHARE = 8


class StaticEngine:
    """For any model that transformers can generate with a cache, encoder-decoder models too.

    How its rows may run together (padded or of equal length, leaving or not) is tried here; `notes` says what is not
    done, and why.
    """

    engine = "static"

    def __init__(self, model: Any, stepper: Stepper, device: str, trial: Tokens) -> None:
        """trial: a few short prompts of this model's vocabulary. Raises UsageError where the decoding asked for takes
        transformers' own generate()."""
        if stepper.needs_library is not None:
            raise UsageError(f"--engine static cannot do this: {stepper.needs_library}. Use --engine generate.")
        self._model, self._stepper, self._device = model, stepper, device
        self._decoder_start = decoder_start_of(model, stepper.config)
        proven = prove(model, device, trial, self._decoder_start)
        self._runs_batches, self._leaves = proven.batches, proven.leaves
        self.pads_safely, self.notes = proven.pads_safely, proven.notes

    def generate(self, prompts: Prompts, max_rows: int, max_prefill_tokens: int, on_step: OnStep) -> Generated:
        """max_rows: outputs that run at a time. max_prefill_tokens: those of a batch's prompts, padding included; of an
        encoder-decoder model, source and expected output of all its rows. One row may exceed it.

        on_step gets the outputs finished and the tokens computed, padding included. Raises DeviceOutOfMemoryError.
        """
        errors = empty_prompts(prompts.tokens)
        rows = rows_of(self._stepper, prompts, self._decoder_start)
        lengths = without_done(prompts.tokens.lengths, rows, on_step)
        schedule = self._schedule(lengths, max_rows if self._runs_batches else 1, max_prefill_tokens)
        with torch.inference_mode(), out_of_memory_named(self._device):
            while (batch := schedule.next()) is not None:
                self._run([rows[i] for i in batch], batch // self._stepper.num_samples, on_step)
                schedule.learn([rows[i].num_generated for i in batch])
        return generated(rows, prompts.num_rows, self._stepper.num_samples, self._stepper.with_logprobs, errors)

    def _schedule(self, lengths: Int64s, max_rows: int, max_tokens: int) -> Schedule:
        target = self._stepper.max_new_tokens if self._decoder_start is not None else None
        return Schedule(
            lengths, self._stepper.num_samples, max_rows, max_tokens, self.pads_safely, self._leaves, target
        )

    def _run(self, rows: list[Row], prompt_of: Int64s, on_step: OnStep) -> None:
        """Until all of them are done. prompt_of [rows]: rows of one number share their prompt."""
        running, logits = self._begin(rows, prompt_of)
        computed = running.prefill_tokens
        while True:
            live = [i for i, row in enumerate(rows) if not row.is_done]
            self._stepper.step([rows[i] for i in live], logits[live] if len(live) < len(rows) else logits)
            going = [i for i in live if not rows[i].is_done]
            on_step(len(live) - len(going), computed)
            if not going:
                return
            if self._leaves and (len(rows) - len(going)) * LEAVE_SHARE >= len(rows):
                running.keep(going)
                rows, going = [rows[i] for i in going], list(range(len(going)))
            computed = len(rows)
            waiting = sorted(set(range(len(rows))) - set(going))
            logits = running.step([row.last_id for row in rows], waiting)

    def _begin(self, rows: Sequence[Row], prompt_of: Int64s) -> tuple[RunningRows, torch.Tensor]:
        """Logits [rows, V] of the first tokens. A prompt is computed once for all its samples, where rows can leave."""
        unique, first, places = np.unique(prompt_of, return_index=True, return_inverse=True)
        is_shared = self._leaves and len(unique) < len(rows)
        prompts = [rows[i].prompt for i in first] if is_shared else [row.prompt for row in rows]
        running = RunningRows(self._model, self._device, prompts, self._decoder_start)
        logits = running.begin()
        if not is_shared:
            return running, logits
        running.keep(places.tolist())
        return running, logits[torch.from_numpy(places).to(logits.device)]


class Schedule:
    """Which outputs run together: the longest prompts first, so that memory peaks at the start. It depends on lengths
    and on what was written, never on time."""

    def __init__(
        self,
        lengths: Int64s,
        num_samples: int,
        max_rows: int,
        max_tokens: int,
        pads: bool,
        shares: bool,
        target: int | None,
    ) -> None:
        """lengths [n] of prompts; output j is of prompt j // num_samples. shares: one prefill for a prompt's samples.
        target: the most tokens an output may have, where outputs count in max_tokens."""
        order = np.argsort(-lengths, kind="stable")
        order = order[lengths[order] > 0]
        self._outputs = (order[:, None] * num_samples + np.arange(num_samples)).ravel()
        self._lengths = np.repeat(lengths[order], num_samples)
        self._samples = num_samples if shares else 1
        self._max_rows, self._max_tokens, self._pads, self._target = max_rows, max_tokens, pads, target
        self._next = self._written = self._learned = 0

    def next(self) -> Int64s | None:
        """The next batch's outputs; None at the end."""
        start = self._next
        if start == len(self._outputs):
            return None
        stop = start + 1
        while stop < len(self._outputs) and self._fits(start, stop):
            stop += 1
        self._next = stop
        return self._outputs[start:stop]

    def learn(self, lengths: Sequence[int]) -> None:
        """Of outputs: what those to come are expected to have is their mean."""
        self._written += sum(lengths)
        self._learned += len(lengths)

    def _fits(self, start: int, last: int) -> bool:
        """Whether the batch may go on to that output."""
        longest, rows = int(self._lengths[start]), last - start + 1
        if rows > self._max_rows or not (self._pads or self._lengths[last] == longest):
            return False
        if self._target is None:
            return longest * (last // self._samples - start // self._samples + 1) <= self._max_tokens
        return rows * (longest + self._expected(longest)) <= self._max_tokens

    def _expected(self, longest: int) -> int:
        """Tokens of an output: before any is known, as many as its source has."""
        assert self._target is not None
        return self._written // self._learned + 1 if self._learned else min(self._target, longest)


def rows_of(stepper: Stepper, prompts: Prompts, decoder_start: Int32s | None) -> list[Row]:
    """In the order prompt * num_samples + sample; the samples of a prompt share its array."""
    tokens = prompts.tokens
    arrays = [tokens.ids[tokens.offsets[i] : tokens.offsets[i + 1]] for i in range(tokens.num_rows)]
    return [
        stepper.row(array, int(key), sample, decoder_start)
        for array, key in zip(arrays, prompts.keys, strict=True)
        for sample in range(stepper.num_samples)
    ]


def without_done(lengths: Int64s, rows: Sequence[Row], on_step: OnStep) -> Int64s:
    """[n] lengths of prompts, 0 for those that leave the model no position to write in: their outputs are finished."""
    is_done = np.array([row.is_done for row in rows], bool).reshape(len(lengths), -1).all(1)
    if done := int((is_done & (lengths > 0)).sum()) * (len(rows) // max(len(lengths), 1)):
        on_step(done, 0)
    return np.where(is_done, 0, lengths)


def empty_prompts(tokens: Tokens) -> dict[int, RowError]:
    """Rows that give the model nothing to go on from."""
    empty = np.flatnonzero(tokens.lengths == 0)
    return {int(row): RowError("empty_prompt", "the prompt has no tokens") for row in empty}
