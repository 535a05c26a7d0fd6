"""transformers' continuous batching: a cache in pages, requests that enter and leave, in a thread of its own.

That thread may die: it logs and the requests that it had are missing or carry an error. They run once more under a new
manager, then in static batches; what is missing even then is an error row.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from packhorse.backends.torch.generation.compat import missing_for_paging, paging_config, without_warmup
from packhorse.backends.torch.generation.memory import out_of_memory_named
from packhorse.backends.torch.generation.proving import FAILURES, first_line
from packhorse.backends.torch.generation.static import StaticEngine, empty_prompts, rows_of, without_done
from packhorse.backends.torch.generation.stepping import Row, Stepper, generated
from packhorse.data import Int32s, Int64s, RowError, Tokens
from packhorse.errors import DeviceOutOfMemoryError, UsageError
from packhorse.generation import LENGTH, STOP, Generated, Prompts
from packhorse.stages import OnStep

PAGE_TOKENS = 64  # of a page; transformers' default of 256 wastes half a page on each short row
SPARE_BLOCKS = 4
WAIT_S = 0.5  # for a result, before asking whether the thread still lives
STOP_S = 30.0
TRIAL_TOKENS = 4


def unfit(model: Any, stepper: Stepper) -> str | None:
    """Why this engine cannot do it; None where it can, as far as can be told without trying."""
    if model.config.is_encoder_decoder:
        return "transformers' continuous batching takes no encoder-decoder models"
    if stepper.needs_library is not None:
        return stepper.needs_library
    if stepper.is_sampled:
        return "do_sample: transformers draws the noise of all requests from one stream"
    if stepper.num_samples > 1:
        return f"num_return_sequences={stepper.num_samples}: without sampling every output would be the same"
    if stepper.with_logprobs:
        return "--logprobs: transformers gives them behind its processors, not the model's own"
    if stepper.is_constrained or stepper.stop_tokenizer is not None:
        return "--json-schema, --choices and stop_strings: transformers' continuous batching knows none of them"
    processors = model._get_logits_processor(copy.deepcopy(stepper.config), input_ids_seq_length=1)
    if processors:
        names = ", ".join(sorted(type(p).__name__ for p in processors))
        return f"{names}: transformers' continuous batching drops it, or applies it to all requests together"
    return missing_for_paging()


class PagedEngine:
    """Greedy decoding alone. Near ties are not counted. `notes` grows when the engine died and rows were run again."""

    engine = "paged"
    pads_safely = True  # nothing is padded

    def __init__(self, model: Any, stepper: Stepper, device: str, trial: Tokens) -> None:
        """Raises UsageError where settings or model are not for it, as two prompts of the trial tell."""
        why_not = unfit(model, stepper)
        if why_not is not None:
            raise UsageError(f"--engine paged: {why_not}. Use --engine static.")
        self._model, self._stepper, self._device, self._trial = model, stepper, device, trial
        self.notes: tuple[str, ...] = ()
        self._static: StaticEngine | None = None
        self._prove()

    def generate(self, prompts: Prompts, max_rows: int, max_prefill_tokens: int, on_step: OnStep) -> Generated:
        """max_rows: requests that run at a time. max_prefill_tokens: of a forward. on_step gets the rows finished and
        the tokens of their prompts and outputs. Raises DeviceOutOfMemoryError."""
        rows = rows_of(self._stepper, prompts, None)
        lengths = without_done(prompts.tokens.lengths, rows, on_step)
        todo = np.flatnonzero(lengths > 0)
        for attempt in range(2):
            if not len(todo):
                break
            before = len(todo)
            failure = self._attempt([rows[i] for i in todo], max_rows, max_prefill_tokens, on_step)
            todo = np.array([i for i in todo if not rows[i].is_done], np.int64)
            if len(todo):
                self._note(f"transformers' engine lost {len(todo)} of {before} rows in run {attempt + 1} ({failure})")
        if len(todo):
            self._run_static(rows, prompts, todo, max_rows, max_prefill_tokens, on_step)
        errors = empty_prompts(prompts.tokens) | _lost(rows, lengths)
        return generated(rows, prompts.num_rows, 1, with_logprobs=False, errors=errors)

    def _attempt(self, rows: Sequence[Row], max_rows: int, max_tokens: int, on_step: OnStep) -> str:
        """Finishes rows as results come. Returns what went wrong, if something did."""
        failure = "it stopped before all were done"
        # The manager's thread changes tensors in place, which those of inference mode do not allow it.
        with torch.inference_mode(False), torch.no_grad(), out_of_memory_named(self._device):
            try:
                for number, output in self._results(rows, max_rows, max_tokens):
                    if output.error is None:
                        self._fill(rows[number], output.generated_tokens)
                        on_step(1, len(rows[number].prompt) + rows[number].num_generated)
                    else:
                        failure = str(output.error).splitlines()[0]
                        _check_memory(failure)
            except FAILURES as error:
                _check_memory(str(error))
                failure = first_line(error)
        return failure

    def _results(self, rows: Sequence[Row], max_rows: int, max_tokens: int) -> Iterator[tuple[int, Any]]:
        """Place in rows, and transformers' GenerationOutput, as requests end; fewer where the thread dies."""
        config = copy.deepcopy(self._stepper.config)
        if config.eos_token_id is None or self._stepper.is_forced:
            config.eos_token_id = -1  # transformers' word for none
        with self._model.continuous_batching_context_manager(
            generation_config=config,
            continuous_batching_config=self._sized(rows, max_rows, max_tokens),
            block=True,
            timeout=STOP_S,
            **without_warmup(self._model),
        ) as manager:
            for number, row in enumerate(rows):
                manager.add_request(row.prompt.tolist(), request_id=str(number), max_new_tokens=row.limit)
            missing = len(rows)
            while missing:
                is_alive = manager.is_running()
                output = manager.get_result(timeout=WAIT_S)
                if output is None and not is_alive:
                    return
                if output is not None and output.is_finished():
                    missing -= 1
                    yield int(output.request_id), output

    def _sized(self, rows: Sequence[Row], max_rows: int, max_tokens: int) -> Any:
        """A cache that holds the longest rows at once."""
        pages = sorted((-(-(len(row.prompt) + row.limit) // PAGE_TOKENS) for row in rows), reverse=True)
        num_pages = sum(pages[:max_rows]) + min(max_rows, len(rows)) + SPARE_BLOCKS
        return paging_config(PAGE_TOKENS, num_pages, max(max_tokens, max_rows), max_rows)

    def _fill(self, row: Row, ids: Sequence[int]) -> None:
        eos = self._stepper.config._eos_token_tensor
        for token_id in ids:
            row.append(int(token_id))
        ended = eos is not None and len(ids) > 0 and ids[-1] in eos.tolist()
        if ended or len(ids) == row.limit:
            row.finish(STOP if ended else LENGTH)
            return
        row.ids.clear()  # part of an output is none
        row.last_id = int(row.start[-1])

    def _run_static(
        self, rows: list[Row], prompts: Prompts, todo: Int64s, max_rows: int, max_tokens: int, on_step: OnStep
    ) -> None:
        try:
            if self._static is None:
                self._static = StaticEngine(self._model, self._stepper, self._device, self._trial)
            again = self._static.generate(prompts.take(todo), max_rows, max_tokens, on_step)
        except FAILURES as error:
            self._note(f"{len(todo)} rows are errors: static batches failed too ({first_line(error)})")
            return
        self._note(f"{len(todo)} rows were written in static batches")
        for place, i in enumerate(todo.tolist()):
            row: Row = self._stepper.row(rows[i].prompt, rows[i].key, 0)
            for token_id in again.ids[again.offsets[place] : again.offsets[place + 1]].tolist():
                row.append(token_id)
            row.near_ties = int(again.near_ties[place])
            row.finish(int(again.reasons[place]))
            rows[i] = row

    def _prove(self) -> None:
        """Two prompts of different lengths, against transformers' own generate() on each alone."""
        ids = self._trial.ids
        prompts = [ids[: max(2, len(ids) // 3)], ids]
        rows = [self._stepper.row(p, 0, 0) for p in prompts]
        for row in rows:
            row.limit = min(row.limit, TRIAL_TOKENS)
        failure = self._attempt(rows, 2, 256, lambda finished, tokens: None)
        if not all(row.is_done for row in rows):
            raise UsageError(f"--engine paged: it does not run this model ({failure}). Use --engine static.")
        if not all(row.ids == self._alone(row.prompt, row.num_generated) for row in rows):
            raise UsageError("--engine paged: two prompts together are not what each is alone. Use --engine static.")

    def _alone(self, prompt: Int32s, num_tokens: int) -> list[int]:
        config = copy.deepcopy(self._stepper.config)
        config.max_new_tokens = num_tokens
        ids = torch.from_numpy(prompt.astype(np.int64))[None].to(self._device)
        written = self._model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=config)
        tokens: list[int] = written[0, len(prompt) :].tolist()
        return tokens

    def _note(self, note: str) -> None:
        self.notes = (*self.notes, note)


def _lost(rows: Sequence[Row], lengths: Int64s) -> dict[int, RowError]:
    message = "transformers' continuous batching lost the row twice, and static batches failed"
    lost = [i for i, row in enumerate(rows) if lengths[i] and not row.is_done]
    return {i: RowError("engine_failed", message) for i in lost}


def _check_memory(failure: str) -> None:
    """Raises DeviceOutOfMemoryError where that is what the engine died of."""
    if "out of memory" in failure.lower():
        raise DeviceOutOfMemoryError(failure.splitlines()[0])
