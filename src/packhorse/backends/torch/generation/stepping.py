"""The next token of every running row, rows of different lengths at different steps together: each row's tokens are
those that transformers' generate() gives to that prompt alone."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer

from packhorse.backends.torch.generation.compat import prepare_special_tokens
from packhorse.backends.torch.generation.constrain import Constraint
from packhorse.backends.torch.generation.processors import Processors
from packhorse.backends.torch.generation.sampling import Sampler, uniforms
from packhorse.backends.torch.generation.settings import effective_config, library_reason
from packhorse.backends.torch.generation.stops import StopStrings
from packhorse.backends.torch.placement import first_device
from packhorse.data import Int32s, Int64s, RowError, offsets_of
from packhorse.errors import UsageError, first_line
from packhorse.generation import LENGTH, NEAR_TIE, STOP, Decoding, Generated

NOT_FINITE = RowError("not_finite", "the model's scores of the next token are NaN or infinite, or leave none")


class Row:
    """One output being written. `reason` counts once is_done."""

    __slots__ = (
        "_context", "error", "ids", "is_done", "key", "last_id", "limit", "logprobs", "matcher", "near_ties", "own",
        "prompt", "reason", "sample", "start",
    )  # fmt: skip

    def __init__(self, prompt: Int32s, start: Int32s, key: int, sample: int, limit: int) -> None:
        """start: what the output goes on from: the prompt, or what an encoder-decoder model's output begins with.
        limit: tokens that may be generated. Without room for one the row is done."""
        self.prompt, self.start, self.key, self.sample, self.limit = prompt, start, key, sample, limit
        self.ids: list[int] = []
        self.logprobs: list[float] = []
        self.near_ties = 0
        self.last_id = int(start[-1]) if len(start) else -1
        self.is_done, self.reason = limit <= 0, LENGTH
        self.error: RowError | None = None  # why there is no output
        self.own: dict[Any, Any] = {}  # what logits processors keep of this row
        self.matcher: Any = None  # where a grammar stands
        self._context: Int64s | None = None

    @property
    def num_generated(self) -> int:
        return len(self.ids)

    @property
    def num_context(self) -> int:
        """Tokens that the output goes on from, and of the output."""
        return len(self.start) + len(self.ids)

    @property
    def context(self) -> Int64s:
        """[num_context] ids, kept up to date from the first time it is asked for."""
        if self._context is None:
            self._context = np.empty(len(self.start) + self.limit, np.int64)
            self._context[: self.num_context] = [*self.start.tolist(), *self.ids]
        return self._context[: self.num_context]

    def append(self, token_id: int) -> None:
        if self._context is not None:
            self._context[self.num_context] = token_id
        self.ids.append(token_id)
        self.last_id = token_id

    def finish(self, reason: int) -> None:
        self.is_done, self.reason = True, reason
        self.own, self.matcher, self._context = {}, None, None

    def fail(self, error: RowError) -> None:
        """No output comes of this row."""
        self.error = error
        self.finish(LENGTH)


class Stepper:
    """Chooses the next token of every running row.

    config: transformers' GenerationConfig of the whole job, max_new_tokens in it unless max_length is what counts.
    """

    def __init__(self, model: Any, tokenizer: Tokenizer, decoding: Decoding, max_length: int | None) -> None:
        """max_length: positions of the model, of the decoder where there is an encoder; None: no limit known. Raises
        UsageError for settings that cannot be meant."""
        self._model, self._seed, self._max_length = model, decoding.seed, max_length
        self._forced: Int64s | None = None
        self.with_logprobs = decoding.with_logprobs
        device = first_device(model)  # a model that lies on several has no other
        self.config = effective_config(model, decoding.settings, device)
        self.is_sampled = self.config.do_sample is True
        self.num_samples = int(self.config.num_return_sequences or 1)
        self.beams = int(self.config.num_beams or 1)
        self.needs_library = library_reason(self.config)
        self.max_new_tokens = int(self.config.max_new_tokens or max(1, self.config.max_length - 1))
        eos = self.config._eos_token_tensor
        self._eos = frozenset(eos.tolist() if eos is not None else ())
        self._stops = StopStrings(tokenizer, self.config.stop_strings) if self.config.stop_strings is not None else None
        self._constraint = self._constrained(tokenizer, decoding) if decoding.is_constrained else None
        if self.needs_library is None:
            self._use(device)

    @contextlib.contextmanager
    def forced(self, lengths: Int64s) -> Iterator[None]:
        """Meanwhile an output has lengths[its prompt's key] tokens, whatever they are: for trials. Only a grammar ends
        it sooner, and the model's last position."""
        self._forced = lengths
        try:
            yield
        finally:
            self._forced = None

    @property
    def is_forced(self) -> bool:
        return self._forced is not None

    @property
    def is_constrained(self) -> bool:
        return self._constraint is not None

    @property
    def stop_tokenizer(self) -> Any:
        """The tokenizers.Tokenizer that stop strings are looked for with; None where there are none."""
        return None if self._stops is None else self._stops.tokenizer

    def row(self, prompt: Int32s, key: int, sample: int, decoder_start: Int32s | None = None) -> Row:
        """A new output. decoder_start: what it begins with where prompt goes to an encoder. Where the model has no
        position left the row is done from the start; where max_length counts and the prompt is no shorter it failed."""
        start = prompt if decoder_start is None else decoder_start
        asked = self.config.max_new_tokens
        limit = int(asked if asked is not None else self.config.max_length - len(start))
        if self._max_length is not None:
            limit = min(limit, self._max_length - len(start))
        if self._forced is not None:
            limit = min(limit, int(self._forced[key]))
        row = Row(prompt, start, key, sample, limit)
        most = self.config.max_length
        if asked is None and len(start) >= most:
            row.fail(RowError("prompt_too_long", f"{len(start):,} tokens, and max_length is {most:,}"))
        return row

    def step(self, rows: Sequence[Row], logits: torch.Tensor) -> None:
        """logits [len(rows), V] of rows that are not done, of any float dtype, on any device; what they hold is the
        same afterwards. Appends one token to each row and sets is_done and reason. A row whose best score is NaN or
        infinite, so that there is nothing to choose by, fails."""
        if rows:
            with torch.inference_mode():
                self._step(rows, logits)

    def _step(self, rows: Sequence[Row], logits: torch.Tensor) -> None:
        if logits.device != self._device:
            self._use(logits.device)
        raw = logits.detach().float()
        scores = self._processors(rows, raw)
        if self._constraint is not None:
            scores = self._constraint.mask(rows, scores, raw)
        ids, is_near, is_lost = self._sampled(rows, scores) if self.is_sampled else _best(scores)
        logprobs = raw.log_softmax(-1).gather(1, ids[:, None])[:, 0] if self.with_logprobs else None
        self._append(rows, *_to_host(ids, is_near, is_lost, logprobs))

    def _sampled(self, rows: Sequence[Row], scores: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        device = scores.device
        if device.type == "mps":  # no float64 there
            scores = scores.cpu()
        is_lost = ~scores.amax(-1).isfinite()
        if is_lost.any():
            scores = scores.masked_fill(is_lost[:, None], 0.0)
        keys = np.array([row.key for row in rows], np.uint64)
        samples, steps = (np.array(list(v)) for v in zip(*((r.sample, r.num_generated) for r in rows), strict=True))
        uniform = torch.from_numpy(uniforms(self._seed, keys, samples, steps)).to(scores.device)
        ids, is_near = self._sampler.choose(scores, uniform)
        return ids.to(device), is_near.to(device), is_lost.to(device)

    def _append(
        self, rows: Sequence[Row], ids: list[int], near: list[int], lost: list[int], logprobs: list[float] | None
    ) -> None:
        for i, (row, token_id) in enumerate(zip(rows, ids, strict=True)):
            if lost[i]:
                row.fail(NOT_FINITE)
                continue
            row.append(token_id)
            row.near_ties += near[i]
            if logprobs is not None:
                row.logprobs.append(logprobs[i])
            if self._ends(row, token_id):
                row.finish(STOP)
            elif len(row.ids) >= row.limit:
                row.finish(LENGTH)

    def _ends(self, row: Row, token_id: int) -> bool:
        if self._constraint is not None:
            return self._constraint.accept(row, token_id)
        if self._forced is not None:
            return False
        return token_id in self._eos or (self._stops is not None and self._stops.ends(row.start, row.ids))

    def _use(self, device: torch.device) -> None:
        """Processors keep tensors on the device of the logits."""
        self._device = device
        prepare_special_tokens(self._model, self.config, device)
        try:
            self._processors = Processors(self._model, self.config, device)
        except (ValueError, TypeError) as error:
            words = f"transformers refuses this: {first_line(error)}"
            raise UsageError(f"--generation, or generation_config.json of this model: {words}") from error
        self._sampler = Sampler(self._processors.warpers)

    def _constrained(self, tokenizer: Tokenizer, decoding: Decoding) -> Constraint:
        flag = "--json-schema" if decoding.json_schema is not None else "--choices"
        if self._stops is not None:
            raise UsageError(
                f"{flag} and stop_strings: a stop string would cut an output short. Leave one of them out."
            )
        if self.needs_library is not None:
            raise UsageError(f"{flag}: {self.needs_library}, which knows no grammar. Leave one of them out.")
        return Constraint(tokenizer, self._model.config.get_text_config().vocab_size, self._eos, decoding)


def greedy(scores: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """scores [B, V] float32 -> the first of each row's best, and whether the second best is less than NEAR_TIE away.
    The scores are the same afterwards."""
    if scores.device.type == "cpu":  # numpy's is vectorised: 7 times as fast
        ids = torch.from_numpy(scores.numpy().argmax(1))[:, None]
    else:
        ids = scores.argmax(-1, keepdim=True)
    best = scores.gather(1, ids)
    scores = scores.contiguous() if 0 in scores.stride() else scores
    second = scores.scatter_(1, ids, -torch.inf).amax(-1, keepdim=True)
    scores.scatter_(1, ids, best)
    return ids[:, 0], (best - second < NEAR_TIE)[:, 0]


def _best(scores: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """greedy(), and whether the best is no number: NaN is the best of all where there is one."""
    ids, is_near = greedy(scores)
    return ids, is_near, ~scores.gather(1, ids[:, None])[:, 0].isfinite()


def generated(
    rows: Sequence[Row], num_prompts: int, num_samples: int, with_logprobs: bool, errors: Mapping[int, RowError]
) -> Generated:
    """rows: in the order prompt * num_samples + sample, those of prompts in errors too or none of theirs; whatever
    stands in a row in error does not count. A prompt is in error too where one of its rows is. Raises ValueError where
    they are another number."""
    is_good = np.repeat([p not in errors for p in range(num_prompts)], num_samples)
    total = num_prompts * num_samples
    if len(rows) not in (total, int(is_good.sum())):
        raise ValueError(f"{len(rows)} rows for {num_prompts} prompts x {num_samples} samples")
    places = np.arange(total) if len(rows) == total else np.flatnonzero(is_good)
    prompt_of = (places // num_samples).tolist()
    failed = {p: row.error for p, row in zip(prompt_of, rows, strict=True) if row.error is not None}
    errors = {**failed, **errors}
    is_good = np.repeat([p not in errors for p in range(num_prompts)], num_samples)
    good = [row for p, row in zip(prompt_of, rows, strict=True) if p not in errors]
    return Generated(
        _flat([row.ids for row in good], np.int32),
        offsets_of(_placed([len(row.ids) for row in good], is_good, np.int64)),
        _placed([row.reason for row in good], is_good, np.int8),
        _placed([row.near_ties for row in good], is_good, np.int32),
        _flat([row.logprobs for row in good], np.float32) if with_logprobs else None,
        dict(errors),
    )


def _flat(lists: Sequence[Sequence[Any]], dtype: type) -> Any:
    return np.fromiter((value for values in lists for value in values), dtype, sum(map(len, lists)))


def _placed(values: Sequence[int], is_good: Any, dtype: type) -> Any:
    placed: Any = np.zeros(len(is_good), dtype)
    placed[is_good] = values
    return placed


def _to_host(
    ids: torch.Tensor, is_near: torch.Tensor, is_lost: torch.Tensor, logprobs: torch.Tensor | None
) -> tuple[list[int], list[int], list[int], list[float] | None]:
    """In one transfer: 32 bits each."""
    columns = [column.to(torch.int32) for column in (ids, is_near, is_lost)]
    if logprobs is not None:
        columns.append(logprobs.view(torch.int32))
    host = torch.stack(columns).cpu()
    floats = host[3].view(torch.float32).tolist() if logprobs is not None else None
    ids_, near, lost = host[:3].tolist()
    return ids_, near, lost, floats
