"""Output lengths that are the same for everyone: random weights never end by themselves, so a logits processor ends
each output at a length that is a function of its prompt's tokens.

`force_lengths()` replaces `_get_logits_processor`, which transformers' generate(), its pipeline, its generate_batch()
and packhorse all ask for the processors of a batch or of a row. The processor is put behind the model's own.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from transformers import GenerationMixin, LogitsProcessor
from transformers.generation.continuous_batching.cb_logits_processors import (
    CLASSIC_TO_CB_PROCESSORS_MAP,
    ContinuousBatchingLogitsProcessor,
)

FORBID, FORCE = 0, 1


class Lengths(NamedTuple):
    """Outputs have shortest to longest tokens, the end token among them."""

    shortest: int
    longest: int
    eos: int
    pad: int

    def of(self, prompt: Sequence[int] | np.ndarray) -> int:
        """Tokens of the output of a prompt, from blake2b over its ids without padding (little-endian int32)."""
        ids = np.asarray(prompt, np.int32)
        digest = hashlib.blake2b(ids[ids != self.pad].astype("<i4").tobytes(), digest_size=8).digest()
        return self.shortest + int.from_bytes(digest, "little") % (self.longest - self.shortest + 1)


class ForcedLength(LogitsProcessor):
    """Of prompts [B, n], padded on any side or not at all, whose outputs begin after `start` tokens."""

    def __init__(self, lengths: Lengths, prompts: torch.Tensor, start: int) -> None:
        self._eos, self._start = lengths.eos, start
        self._targets = [lengths.of(prompt) for prompt in prompts.cpu().numpy()]

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """scores [B, V] of the next tokens; input_ids [B, start + tokens generated so far]."""
        generated = input_ids.shape[1] - self._start
        return forced(scores, [target == generated + 1 for target in self._targets], self._eos)


class ForcedLengthUnseen(LogitsProcessor):
    """Stands for ForcedLengthPerRequest in the list that generate_batch() makes its own processors of: it has room for
    those alone that it made itself (ContinuousBatchingConfig.per_request_processors)."""

    def __init__(self, lengths: Lengths) -> None:
        self.lengths = lengths


class ForcedLengthPerRequest(ContinuousBatchingLogitsProcessor):
    """The same for generate_batch(), which shows its processors no ids but, for each running request, its state."""

    supported_kwargs: ClassVar[dict[str, type]] = {}
    ignored_kwargs: ClassVar[tuple[str, ...]] = ()

    def __init__(self, unseen: ForcedLengthUnseen) -> None:
        self._lengths = unseen.lengths
        self._targets: dict[str, int] = {}

    def fill_defaults(self, int32_tensor: torch.Tensor) -> None:
        int32_tensor.fill_(FORBID)

    def prepare_tensor_args(self, requests_with_new_token: list[Any]) -> torch.Tensor:
        flags = [self._is_last(request.state) for request in requests_with_new_token]
        return torch.tensor(flags, dtype=torch.int32)

    def __call__(self, scores: torch.Tensor, tensor_arg: torch.Tensor) -> torch.Tensor:
        return forced(scores, [flag == FORCE for flag in tensor_arg[: scores.shape[0]].tolist()], self._lengths.eos)

    def _is_last(self, state: Any) -> int:
        """FORCE where the request's next token is to be its last one. A request that was put off and begun again has
        what it had generated behind its prompt."""
        prompt_tokens = state._true_initial_tokens or len(state.initial_tokens)
        if state.request_id not in self._targets:
            self._targets[state.request_id] = self._lengths.of(state.initial_tokens[:prompt_tokens])
        generated = len(state.initial_tokens) - prompt_tokens + len(state.generated_tokens)
        return FORCE if self._targets[state.request_id] == generated + 1 else FORBID


def forced(scores: torch.Tensor, ends: Sequence[bool], eos: int) -> torch.Tensor:
    """scores [B, V] where the rows that end have the end token alone, and the others all but it."""
    scores = scores.clone()
    scores[:, eos] = -torch.inf
    for row, is_last in enumerate(ends):
        if is_last:
            scores[row] = -torch.inf
            scores[row, eos] = 0
    return scores


def force_lengths(lengths: Lengths) -> None:
    """For every model of this process, from now on."""
    original = GenerationMixin._get_logits_processor

    def with_forced_length(
        self: Any, generation_config: Any, input_ids_seq_length: int | None = None,
        encoder_input_ids: torch.Tensor | None = None, **others: Any,
    ) -> Any:  # fmt: skip
        processors = original(self, generation_config, input_ids_seq_length, encoder_input_ids, **others)
        if encoder_input_ids is None or input_ids_seq_length is None:  # only generate_batch() knows no prompts here
            processors.append(ForcedLengthUnseen(lengths))
        else:
            processors.append(ForcedLength(lengths, encoder_input_ids, input_ids_seq_length))
        return processors

    GenerationMixin._get_logits_processor = with_forced_length
    CLASSIC_TO_CB_PROCESSORS_MAP[ForcedLengthUnseen] = ForcedLengthPerRequest
