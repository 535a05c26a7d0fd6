"""May rows of this model run together, padded, and leave one by one? Tried against transformers' generate() alone."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import GenerationConfig

from packhorse.backends.torch.generation.memory import out_of_memory_named
from packhorse.backends.torch.generation.rows import RunningRows
from packhorse.data import Float32s, Int32s, Tokens
from packhorse.errors import ModelError
from packhorse.packing.probe import error

# Largest error as a share of how much logits differ between rows and steps: of float32, of half precision, of weights
# in 8 or 4 bits, whose products round by what else stands in the batch. A row that sees padding is at 0.2 and more.
TOLERANCE = {torch.float32: 1e-3, torch.float16: 0.03, torch.bfloat16: 0.1}
TOKENS = 4  # of each trial row: one before a row leaves, the others behind it
LONG = 3  # times a trial row's length that the longest trial prompt has
# What transformers raises where a model cannot take part.
FAILURES = (RuntimeError, ValueError, TypeError, IndexError, AttributeError, KeyError, NotImplementedError)


@dataclass(frozen=True, slots=True)
class Togetherness:
    """What was proven, and what was not, in words."""

    batches: bool  # rows of equal length run together
    pads_safely: bool  # rows of any lengths do
    leaves: bool  # finished rows leave, and one prompt becomes several rows
    notes: tuple[str, ...]


def prove(model: Any, device: str, trial: Tokens, decoder_start: Int32s | None) -> Togetherness:
    """trial: at least one short row. Raises ModelError where transformers' own generate() does not run this model."""
    with torch.inference_mode():
        return _proven(model, device, trial, decoder_start)


def _proven(model: Any, device: str, trial: Tokens, decoder_start: Int32s | None) -> Togetherness:
    different, equal = _prompts(trial)
    tolerance = TOLERANCE.get(model.dtype, 0.1)
    judge = _Judge(model, device, decoder_start, tolerance)
    pads, why_not_padded = judge(different, leaving=False)
    batches, why_not_together = (True, "") if pads else judge(equal, leaving=False)
    leaves, why_not_left = judge(different if pads else equal, leaving=True) if batches else (False, "")
    notes = []
    if not pads:
        notes.append(f"prompts of different lengths are not padded together: {why_not_padded}")
    if not batches:
        notes.append(f"every prompt runs alone: {why_not_together}")
    elif not leaves:
        notes.append(f"finished rows stay until the last one of their batch is done: {why_not_left}")
    return Togetherness(batches, pads, leaves, tuple(notes))


class _Judge:
    def __init__(self, model: Any, device: str, decoder_start: Int32s | None, tolerance: float) -> None:
        self._model, self._device, self._decoder_start, self._tolerance = model, device, decoder_start, tolerance
        self._alone: dict[bytes, tuple[list[int], Float32s]] = {}

    def __call__(self, prompts: Sequence[Int32s], leaving: bool) -> tuple[bool, str]:
        """Whether each row has the logits that generate() gives it alone; else why not."""
        alone = [self._row_alone(p) for p in prompts]
        try:
            with out_of_memory_named(self._device):
                together = self._together(prompts, [ids for ids, _ in alone], leaving)
        except FAILURES as failure:
            return False, f"the model does not take it ({type(failure).__name__}: {first_line(failure)})"
        seen = np.concatenate([logits[: len(t)] for (_, logits), t in zip(alone, together, strict=True)])
        difference = error(seen, np.concatenate(together))
        return difference <= self._tolerance, f"logits differ by {difference:.1g} from those of each prompt alone"

    def _together(self, prompts: Sequence[Int32s], ids: list[list[int]], leaving: bool) -> list[Float32s]:
        """Logits [steps, V] of every row while it was there: with leaving, the second goes after one token."""
        rows = RunningRows(self._model, self._device, prompts, self._decoder_start)
        there = list(range(len(prompts)))
        logits: list[list[Float32s]] = [[] for _ in prompts]
        values = rows.begin()
        for step in range(TOKENS):
            for row, value in zip(there, values.float().cpu().numpy(), strict=True):
                logits[row].append(value)
            if leaving and step == 0:
                there = [row for row in there if row != 1]
                rows.keep(there)
            if step + 1 < TOKENS:
                values = rows.step([ids[row][step] for row in there], ())
        return [np.stack(row) for row in logits]

    def _row_alone(self, prompt: Int32s) -> tuple[list[int], Float32s]:
        """What generate() writes after the prompt, greedily, and its logits [TOKENS, V]."""
        if (known := self._alone.get(prompt.tobytes())) is None:
            known = self._alone[prompt.tobytes()] = self._generated(prompt)
        return known

    def _generated(self, prompt: Int32s) -> tuple[list[int], Float32s]:
        ids = torch.from_numpy(prompt.astype(np.int64))[None].to(self._device)
        try:
            with plain_decoding(self._model, self._decoder_start), out_of_memory_named(self._device):
                out = self._model.generate(ids, attention_mask=torch.ones_like(ids))
        except FAILURES as failure:
            raise ModelError(f"transformers' generate() does not run this model: {first_line(failure)}") from failure
        logits = torch.stack([step[0].float().cpu() for step in out.logits]).numpy()
        return out.sequences[0, -len(logits) :].tolist(), logits


@contextlib.contextmanager
def plain_decoding(model: Any, decoder_start: Int32s | None) -> Iterator[None]:
    """generate() takes a few tokens greedily: what the model's own file says of beams, rules and ends is set aside."""
    own = model.generation_config
    start = None if decoder_start is None else int(decoder_start[0])
    plain = GenerationConfig(bos_token_id=own.bos_token_id, pad_token_id=own.pad_token_id, decoder_start_token_id=start)
    plain.update(do_sample=False, max_new_tokens=TOKENS, output_logits=True, return_dict_in_generate=True)
    model.generation_config = plain
    try:
        yield
    finally:
        model.generation_config = own


def _prompts(trial: Tokens) -> tuple[list[Int32s], list[Int32s]]:
    """Three prompts of different lengths, the longest neither first nor last; three of equal length. The shortest has 2
    tokens, fewer than a Mamba's convolution: older versions of transformers continue such a prompt as if it had more
    where it is padded."""
    base = trial.ids
    short = max(2, int(trial.lengths.min()))
    lengths = (2, LONG * short, short + 1)
    different = [np.resize(np.roll(base, -i), n) for i, n in enumerate(lengths)]
    equal = [np.resize(np.roll(base, -i), short + 1) for i in range(3)]
    return different, equal


def first_line(failure: Exception) -> str:
    return (str(failure).splitlines() or [""])[0][:120]
