"""Rows that run through a model together: their ids, masks, positions and cache as transformers' generate() keeps them.

The model's own prepare_inputs_for_generation and _update_model_kwargs_for_generation make the inputs of every step, so
that whatever a model wants there it gets.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from transformers import GenerationConfig
from transformers.modeling_outputs import BaseModelOutput

from packhorse.backends.torch.generation.compat import with_cache_position
from packhorse.backends.torch.generation.growing import empty_cache
from packhorse.data import Int32s, Int64s
from packhorse.errors import ModelError

# A padded place has to hold some id; none is read.
PAD = 0

# A forward of fewer tokens takes about as long as one of so many: the weights have to be read.
SMALL_GROUP_TOKENS = 256


class RunningRows:
    """Prompts that begin together and then take one token a step."""

    prefill_tokens: int  # that the prompts cost, padding included

    def __init__(self, model: Any, device: str, prompts: Sequence[Int32s], decoder_start: Int32s | None) -> None:
        """decoder_start: what an encoder-decoder model's output begins with; None for a decoder."""
        self._model, self._device = model, device
        self._is_seq2seq = bool(model.config.is_encoder_decoder)
        self.num_rows = len(prompts)
        self._kwargs: dict[str, Any] = {"use_cache": True}
        name = "cache_params" if "mamba" in type(model).__name__.lower() else "past_key_values"
        if (cache := empty_cache(model)) is not None:
            self._kwargs[name] = cache
        if decoder_start is None:
            self._ids = self._left_padded(prompts)
        else:
            self._ids = self._encoded(prompts, decoder_start)

    def begin(self) -> torch.Tensor:
        """Logits [rows, V] of every row's first token."""
        self._kwargs = with_cache_position(self._model, self._kwargs, self._ids)
        return self._forward(None, is_first_iteration=True)

    def step(self, last_ids: Sequence[int], finished: Sequence[int]) -> torch.Tensor:
        """Logits [rows, V] after one more token of each row. finished: places of rows that only wait to leave."""
        ids = torch.tensor(last_ids, dtype=torch.long, device=self._device)
        self._ids = torch.cat([self._ids, ids[:, None]], dim=1)
        positions = self._kwargs.get("position_ids")
        if finished and positions is not None:  # theirs must not run beyond the model's last position
            positions[..., list(finished), -1] = 0
        return self._forward(1, is_first_iteration=False)

    def keep(self, rows: Sequence[int]) -> None:
        """Only those rows, in that order, go on; one may stand there more than once."""
        index = torch.tensor(rows, dtype=torch.long, device=self._device)
        self._ids = self._ids.index_select(0, index)
        for name, value in self._kwargs.items():
            if name != "cache_position":  # of all rows together
                self._kwargs[name] = _selected(value, index)
        self.num_rows = len(rows)

    def _forward(self, next_sequence_length: int | None, is_first_iteration: bool) -> torch.Tensor:
        extra = {} if next_sequence_length is None else {"next_sequence_length": next_sequence_length}
        inputs = self._model.prepare_inputs_for_generation(
            self._ids, is_first_iteration=is_first_iteration, **extra, **self._kwargs
        )
        outputs = self._model(**inputs, return_dict=True)
        self._kwargs = self._model._update_model_kwargs_for_generation(
            outputs, self._kwargs, is_encoder_decoder=self._is_seq2seq
        )
        logits: torch.Tensor = outputs.logits[:, -1]
        return logits

    def _left_padded(self, prompts: Sequence[Int32s]) -> torch.Tensor:
        """[rows, longest] ids. A mask only where there is padding, as in generate(); positions count what is not."""
        accepted = inspect.signature(self._model.forward).parameters
        ids, mask = padded(prompts, from_left=True)
        self.prefill_tokens = ids.size
        is_real = torch.from_numpy(mask).to(self._device)
        if "position_ids" in accepted:
            self._kwargs["position_ids"] = (is_real.cumsum(-1) - 1).masked_fill(is_real == 0, 0)
        if "attention_mask" in accepted and not mask.all():
            self._kwargs["attention_mask"] = is_real
        if "logits_to_keep" in accepted:
            self._kwargs["logits_to_keep"] = 1
        return torch.from_numpy(ids).to(self._device)

    def _encoded(self, prompts: Sequence[Int32s], decoder_start: Int32s) -> torch.Tensor:
        """[rows, start] ids of the decoder; the encoder has run, over rows of about one length at a time: padded to the
        longest of them all, sources of mixed lengths would mostly be padding."""
        _, mask = padded(prompts, from_left=False)
        hidden: torch.Tensor | None = None
        self.prefill_tokens = len(prompts) * len(decoder_start)
        for group in length_groups(np.array([len(p) for p in prompts])):
            states = self._encoder_states([prompts[i] for i in group])
            if hidden is None:
                hidden = states.new_zeros(*mask.shape, states.shape[-1])
            hidden[torch.from_numpy(group).to(states.device), : states.shape[1]] = states
        assert hidden is not None
        self._kwargs["encoder_outputs"] = BaseModelOutput(last_hidden_state=hidden.to(self._device))
        self._kwargs["attention_mask"] = torch.from_numpy(mask).to(self._device)
        start = torch.from_numpy(decoder_start.astype(np.int64)).to(self._device)
        return start[None].repeat(len(prompts), 1)

    def _encoder_states(self, prompts: Sequence[Int32s]) -> torch.Tensor:
        """[rows, longest of them, hidden]"""
        ids, mask = padded(prompts, from_left=False)
        self.prefill_tokens += ids.size
        source, is_real = torch.from_numpy(ids).to(self._device), torch.from_numpy(mask).to(self._device)
        states: torch.Tensor = self._model.get_encoder()(input_ids=source, attention_mask=is_real, return_dict=True)[0]
        return states


def length_groups(lengths: Int64s) -> list[Int64s]:
    """Rows of [n] lengths, the longest first, in groups of which at most a quarter is padding, or that are small."""
    order = np.argsort(-lengths, kind="stable")
    groups: list[Int64s] = []
    start = 0
    for place, length in enumerate(lengths[order].tolist()):
        longest = int(lengths[order[start]])
        if length * 4 < longest * 3 and longest * (place - start) >= SMALL_GROUP_TOKENS:
            groups.append(order[start:place])
            start = place
    return [*groups, order[start:]]


def decoder_start_of(model: Any, config: GenerationConfig) -> Int32s | None:
    """[1] what an encoder-decoder model's outputs begin with under a Stepper's config; None for a decoder.

    Raises ModelError where neither decoder_start_token_id nor bos_token_id is known.
    """
    if not model.config.is_encoder_decoder:
        return None
    start = config.decoder_start_token_id if config.decoder_start_token_id is not None else config.bos_token_id
    if start is None:
        raise ModelError("the model names no decoder_start_token_id: its generation_config.json has to")
    return np.atleast_1d(np.array(start, np.int32))[:1]


def padded(prompts: Sequence[Int32s], from_left: bool) -> tuple[np.ndarray, np.ndarray]:
    """int64 [rows, longest] ids and mask."""
    longest = max(len(p) for p in prompts)
    ids = np.full((len(prompts), longest), PAD, np.int64)
    mask = np.zeros((len(prompts), longest), np.int64)
    for row, prompt in enumerate(prompts):
        where = slice(longest - len(prompt), longest) if from_left else slice(0, len(prompt))
        ids[row, where], mask[row, where] = prompt, 1
    return ids, mask


def _selected(value: Any, index: torch.Tensor) -> Any:
    """The rows of one of the model's arguments; what has no rows stays."""
    if hasattr(value, "reorder_cache"):
        value.reorder_cache(index)  # the one selection that every kind of cache layer has
        return value
    if isinstance(value, BaseModelOutput):
        return BaseModelOutput(last_hidden_state=value.last_hidden_state.index_select(0, index))
    if isinstance(value, torch.Tensor) and value.ndim:
        return value.index_select(1 if value.ndim == 3 else 0, index)  # [3, rows, n]: positions in several dimensions
    if value is None or isinstance(value, int | torch.Tensor):
        return value
    raise NotImplementedError(f"transformers' {type(value).__name__} has no selection of rows")
