"""transformers' logits processors over rows of different lengths at different steps: each row's scores become those
that the row alone would have, in transformers' order.

What looks at neither ids nor lengths runs once for all rows. What looks at a length does the same to all rows that it
does anything to, so that those share a call. What looks at ids gets them padded where padding cannot count, else a row
at a time.
"""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Callable, Hashable, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from transformers import GenerationConfig

from packhorse.backends.torch.generation.settings import row_config
from packhorse.data import Int32s, Int64s


class Context(Protocol):
    """What processors see of a row."""

    prompt: Int32s
    limit: int  # tokens that may be generated
    own: dict[Any, Any]  # what processors keep of this row

    @property
    def start(self) -> Int32s: ...  # what the output goes on from
    @property
    def context(self) -> Int64s: ...  # start and generated ids
    @property
    def num_context(self) -> int: ...


Stage = Callable[[Sequence[Any], torch.Tensor], torch.Tensor]

SHARED = frozenset({
    "SuppressTokensLogitsProcessor", "InfNanRemoveLogitsProcessor",
})  # fmt: skip

# By class: what tells rows apart to which a processor does different things (processor of the row, its length), None
# where it does nothing.
SITUATIONS: dict[str, Callable[[Any, int], Hashable | None]] = {
    "MinLengthLogitsProcessor": lambda p, n: True if n < p.min_length else None,
    "MinNewTokensLengthLogitsProcessor": lambda p, n: True if n - p.prompt_length_to_skip < p.min_new_tokens else None,
    "ForcedBOSTokenLogitsProcessor": lambda p, n: True if n == 1 else None,
    "ForcedEOSTokenLogitsProcessor": lambda p, n: True if n == p.max_length - 1 else None,
    "ExponentialDecayLengthPenalty": lambda p, n: n - p.regulation_start if n > p.regulation_start else None,
    "SuppressTokensAtBeginLogitsProcessor": lambda p, n: True if n == p.begin_index else None,
}


class Processors:
    """warpers: transformers' list of what narrows a distribution that is sampled from, left to the caller."""

    def __init__(self, model: Any, config: GenerationConfig, device: torch.device) -> None:
        """Raises ValueError or TypeError for values that a processor does not take."""
        self._model, self._config, self._device = model, config, device
        listed = self._listed(1, np.zeros(1, np.int32), 1, config)
        unwarped = copy.copy(config)
        unwarped.do_sample = unwarped.renormalize_logits = False
        count = len(self._listed(1, np.zeros(1, np.int32), 1, unwarped))
        self._unwarped = unwarped
        self.warpers = listed[count:]
        self._stages = [self._stage(i, processor) for i, processor in enumerate(listed[:count])]

    @property
    def is_empty(self) -> bool:
        return not self._stages

    def __call__(self, rows: Sequence[Context], scores: torch.Tensor) -> torch.Tensor:
        """scores [B, V] float32 of the rows' next tokens; they are not changed in place."""
        for stage in self._stages:
            scores = stage(rows, scores)
        return scores

    def of(self, row: Context, place: int) -> Any:
        """The row's own processor at that place of transformers' list."""
        if "listed" not in row.own:
            row.own["listed"] = self._listed(len(row.start), row.prompt, row.limit, self._unwarped)
        return row.own["listed"][place]

    def _listed(self, start: int, prompt: Int32s, limit: int, config: GenerationConfig) -> list[Any]:
        encoder_ids = torch.from_numpy(prompt.astype(np.int64))[None].to(self._device)
        listed: list[Any] = self._model._get_logits_processor(
            row_config(config, start, limit),
            input_ids_seq_length=start,
            encoder_input_ids=encoder_ids,
            device=str(self._device),
        )
        return listed

    def _stage(self, place: int, processor: Any) -> Stage:
        name = type(processor).__name__
        if name in SHARED:
            return lambda rows, scores: processor(None, scores)
        if name in SITUATIONS:
            return _ByLength(self, place, SITUATIONS[name])
        if name == "RepetitionPenaltyLogitsProcessor":
            return lambda rows, scores: processor(right_padded(rows, scores.device), scores)
        if name in ("SequenceBiasLogitsProcessor", "NoBadWordsLogitsProcessor"):
            window = max(1, *(len(ids) - 1 for ids in processor.sequence_bias), 1)
            return lambda rows, scores: processor(last_ids(rows, window, scores.device), scores)
        if name == "NoRepeatNGramLogitsProcessor":
            return _NoRepeatNgram(place, processor.ngram_size)
        return _RowByRow(self, place)


class _ByLength:
    def __init__(self, processors: Processors, place: int, situation: Callable[[Any, int], Hashable | None]) -> None:
        self._processors, self._place, self._situation = processors, place, situation

    def __call__(self, rows: Sequence[Context], scores: torch.Tensor) -> torch.Tensor:
        groups: defaultdict[Hashable, list[int]] = defaultdict(list)
        for i, row in enumerate(rows):
            situation = self._situation(self._processors.of(row, self._place), row.num_context)
            if situation is not None:
                groups[situation].append(i)
        for places in groups.values():
            first = rows[places[0]]
            processor = self._processors.of(first, self._place)
            # Only the length of these ids is looked at.
            ids = torch.zeros((1, 1), dtype=torch.long, device=scores.device).expand(len(places), first.num_context)
            if len(places) == len(rows):
                return processor(ids, scores)
            index = torch.tensor(places, device=scores.device)
            scores = scores.index_copy(0, index, processor(ids, scores[index]))
        return scores


class _NoRepeatNgram:
    """As transformers' processor of that name, which looks through all of a row's ids at every step; here a row
    remembers what followed each (size - 1)-gram."""

    def __init__(self, place: int, size: int) -> None:
        self._place, self._size = place, size

    def __call__(self, rows: Sequence[Context], scores: torch.Tensor) -> torch.Tensor:
        banned = [(i, t) for i, row in enumerate(rows) for t in self._banned(row) if t < scores.shape[1]]
        if not banned:
            return scores
        index = torch.tensor(banned, device=scores.device)
        scores = scores.clone()
        scores[index[:, 0], index[:, 1]] = -torch.inf
        return scores

    def _banned(self, row: Context) -> set[int]:
        kept: tuple[defaultdict[tuple[int, ...], set[int]], int] | None = row.own.get(self._place)
        followers, seen = kept or (defaultdict(set), 0)
        known = row.num_context
        first = max(0, seen - self._size + 1)
        ids = row.context[first:known].tolist()
        for end in range(self._size - 1, len(ids)):
            followers[tuple(ids[end - self._size + 1 : end])].add(ids[end])
        row.own[self._place] = (followers, known)
        if known < self._size:
            return set()
        return followers.get(tuple(row.context[known - self._size + 1 : known].tolist()), set())


class _RowByRow:
    def __init__(self, processors: Processors, place: int) -> None:
        self._processors, self._place = processors, place

    def __call__(self, rows: Sequence[Context], scores: torch.Tensor) -> torch.Tensor:
        parts = [
            self._processors.of(row, self._place)(
                torch.from_numpy(row.context)[None].to(scores.device), scores[i : i + 1]
            )
            for i, row in enumerate(rows)
        ]
        return torch.cat(parts)


def right_padded(rows: Sequence[Context], device: torch.device) -> torch.Tensor:
    """[B, longest] ids of prompts and outputs. The padding is each row's own last id: the repetition penalty asks which
    ids are there, not how often. (Older versions of transformers refuse an id that is none.)"""
    ids = np.empty((len(rows), max(row.num_context for row in rows)), np.int64)
    for line, row in zip(ids, rows, strict=True):
        line[: row.num_context] = row.context
        line[row.num_context :] = row.context[-1]
    return torch.from_numpy(ids).to(device)


def last_ids(rows: Sequence[Context], window: int, device: torch.device) -> torch.Tensor:
    """[B, window] ids, -1 before a row's first: no biased sequence has it."""
    ids = np.full((len(rows), window), -1, np.int64)
    for line, row in zip(ids, rows, strict=True):
        tail = row.context[-window:]
        line[window - len(tail) :] = tail
    return torch.from_numpy(ids).to(device)
