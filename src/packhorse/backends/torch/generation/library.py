"""transformers' own generate(), for what only it can do: beams, guidance, contrastive search, assistants."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from packhorse.backends.torch.generation.compat import encoder_penalty_knows_beams
from packhorse.backends.torch.generation.memory import out_of_memory_named
from packhorse.backends.torch.generation.proving import first_line, prove
from packhorse.backends.torch.generation.rows import decoder_start_of, padded
from packhorse.backends.torch.generation.settings import library_reason
from packhorse.backends.torch.generation.static import empty_prompts, rows_of, without_done
from packhorse.backends.torch.generation.stepping import Row, Stepper, generated
from packhorse.data import Int64s, Tokens
from packhorse.errors import UsageError
from packhorse.generation import LENGTH, STOP, Generated, Prompts
from packhorse.stages import OnStep

# Settings that look at a row's earlier ids, padding among them, or count them, and the values that ask for nothing.
LOOKS_BACK: dict[str, tuple[Any, ...]] = {
    "repetition_penalty": (None, 1.0),
    "encoder_repetition_penalty": (None, 1.0),
    "no_repeat_ngram_size": (None, 0),
    "encoder_no_repeat_ngram_size": (None, 0),
    "min_length": (None, 0),
    "bad_words_ids": (None,),
    "sequence_bias": (None,),
    "exponential_decay_length_penalty": (None,),
}


class LibraryEngine:
    """Deterministic decoding only. Beams run in batches of prompts that end at the same length: padded where a trial
    found padding safe and no setting looks back at it, else of equal length. All else runs one prompt at a time."""

    engine = "generate"

    def __init__(self, model: Any, stepper: Stepper, device: str, trial: Tokens) -> None:
        """Raises UsageError where the settings ask for what generate() cannot do reproducibly."""
        _check(stepper)
        self._model, self._stepper, self._device = model, stepper, device
        self._decoder_start = decoder_start_of(model, stepper.config)
        proven = prove(model, device, trial, self._decoder_start)
        reason = _alone_reason(stepper)
        self._runs_batches = proven.batches and reason is None
        looks_back = [name for name, nothing in LOOKS_BACK.items() if getattr(stepper.config, name) not in nothing]
        self.pads_safely = proven.pads_safely and not looks_back
        self.notes = _notes(proven.notes, reason, looks_back if proven.pads_safely else [])

    def generate(self, prompts: Prompts, max_rows: int, max_prefill_tokens: int, on_step: OnStep) -> Generated:
        """max_rows: beams, or outputs, that run at a time. max_prefill_tokens: of a batch's prompts, padding included.

        on_step gets the outputs finished and the tokens computed, as far as can be told from the outputs. Near ties
        are not counted. Raises DeviceOutOfMemoryError.
        """
        samples = self._stepper.num_samples
        rows = rows_of(self._stepper, prompts, self._decoder_start)
        lengths = without_done(prompts.tokens.lengths, rows, on_step)
        limits = np.array([row.limit for row in rows[::samples]], np.int64)
        width = max(self._stepper.beams, samples)
        max_prompts = max(1, max_rows // width) if self._runs_batches else 1
        # Tensors of inference mode must not meet generate()'s own no_grad in caches that it keeps.
        with torch.inference_mode(False), torch.no_grad(), out_of_memory_named(self._device):
            for batch in _batches(lengths, limits, max_prompts, max_prefill_tokens, self.pads_safely):
                computed = self._run([rows[i * samples : (i + 1) * samples] for i in batch.tolist()])
                on_step(len(batch) * samples, computed)
        errors = empty_prompts(prompts.tokens)
        return generated(rows, prompts.num_rows, samples, with_logprobs=False, errors=errors)

    def _run(self, rows: Sequence[Sequence[Row]]) -> int:
        """rows: those of each prompt. Returns the tokens computed."""
        is_seq2seq = self._decoder_start is not None
        ids, mask = padded([of_prompt[0].prompt for of_prompt in rows], from_left=not is_seq2seq)
        config = copy.deepcopy(self._stepper.config)
        config.max_new_tokens = rows[0][0].limit
        try:
            written = self._model.generate(
                torch.from_numpy(ids).to(self._device),
                attention_mask=torch.from_numpy(mask).to(self._device),
                generation_config=config,
                tokenizer=self._tokenizer(),
            )
        except (ValueError, NotImplementedError, TypeError, ImportError) as refusal:
            raise UsageError(f"--generation: transformers' generate() refuses this: {first_line(refusal)}") from refusal
        start = len(self._decoder_start) if self._decoder_start is not None else ids.shape[1]
        outputs = written[:, start:].cpu().numpy()
        for row, output in zip((row for of_prompt in rows for row in of_prompt), outputs, strict=True):
            self._fill(row, output)
        return ids.size + len(rows) * max(self._stepper.beams, self._stepper.num_samples) * outputs.shape[1]

    def _fill(self, row: Row, output: Int64s) -> None:
        """output: the row's ids, with padding behind its end."""
        eos = self._stepper.config._eos_token_tensor
        ends = np.flatnonzero(np.isin(output, [] if eos is None else eos.cpu().numpy()))
        if len(ends):
            output = output[: ends[0] + 1]
        elif self._stepper.config.stop_strings is not None and self._stepper.config.pad_token_id is not None:
            real = np.flatnonzero(output != self._stepper.config.pad_token_id)
            output = output[: real[-1] + 1] if len(real) else output[:0]
        for token_id in output.tolist():
            row.append(token_id)
        row.finish(STOP if len(ends) or len(output) < row.limit else LENGTH)

    def _tokenizer(self) -> Any:
        """As generate() wants it where there are stop strings."""
        if self._stepper.stop_tokenizer is None:
            return None
        from transformers import PreTrainedTokenizerFast

        return PreTrainedTokenizerFast(tokenizer_object=self._stepper.stop_tokenizer)


def _check(stepper: Stepper) -> None:
    if stepper.is_sampled:
        what = "do_sample with num_beams" if stepper.beams > 1 else "do_sample"
        raise UsageError(
            f"--engine generate: {what}: transformers draws the noise of all rows of a batch from one stream, so that "
            "a row's sample would depend on its neighbours. Leave out do_sample, or num_beams and --engine."
        )
    if stepper.with_logprobs:
        raise UsageError(
            "--logprobs: transformers' generate() gives none per row. Leave it out, or --engine and beams."
        )
    if stepper.is_constrained:
        raise UsageError("--json-schema, --choices: transformers' generate() knows no grammar. Leave out --engine.")
    if stepper.num_samples > stepper.beams:
        raise UsageError(
            f"num_return_sequences={stepper.num_samples}: without sampling every output would be the same. "
            f"Ask for num_beams of at least as many (now {stepper.beams}), or for do_sample."
        )


def _alone_reason(stepper: Stepper) -> str | None:
    """Why prompts run one by one: a setting besides beams of which only generate() knows what it means."""
    without_beams = copy.copy(stepper.config)
    without_beams.num_beams = 1
    if stepper.config.stop_strings is not None:
        return "stop_strings"
    if stepper.config.encoder_repetition_penalty not in (None, 1.0) and not encoder_penalty_knows_beams():
        return "encoder_repetition_penalty, which this version of transformers mixes up between beams of a batch"
    return library_reason(without_beams)


def _notes(proven: tuple[str, ...], reason: str | None, looks_back: Sequence[str]) -> tuple[str, ...]:
    notes = list(proven[:1])
    if reason is not None:
        notes.append(f"every prompt runs alone: {reason}")
    elif looks_back:
        notes.append(f"prompts of different lengths are not padded together: {', '.join(looks_back)} would see it")
    return tuple(notes)


def _batches(
    lengths: Int64s, limits: Int64s, max_prompts: int, max_tokens: int, pads: bool
) -> Iterator[Int64s]:  # fmt: skip
    """Prompts by limit, then length, the longest first. Those of a batch may write equally many tokens."""
    order = np.lexsort((-lengths, limits))
    order = order[lengths[order] > 0]
    start = 0
    while start < len(order):
        first = order[start]
        stop = start + 1
        while (
            stop < len(order)
            and stop - start < max_prompts
            and limits[order[stop]] == limits[first]
            and (pads or lengths[order[stop]] == lengths[first])
            and (stop - start + 1) * lengths[first] <= max_tokens
        ):
            stop += 1
        yield order[start:stop]
        start = stop
