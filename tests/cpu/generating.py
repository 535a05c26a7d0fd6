"""What the tests of the engines share: prompts, and plain transformers, one prompt at a time, as the reference."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from packhorse.backends.torch.generation.stepping import Stepper
from packhorse.data import Int32s, Tokens, offsets_of
from packhorse.generation import Decoding, Generated, Prompts
from tests.generators import VOCAB
from tests.models import word_piece_tokenizer

MAX_NEW_TOKENS = 24
ENDS = list(range(5, VOCAB, 20))  # one token in twenty ends an output, so that outputs have very different lengths


def texts(lengths: Sequence[int], seed: int = 0) -> list[Int32s]:
    rng = np.random.default_rng(seed)
    return [rng.integers(3, VOCAB, n).astype(np.int32) for n in lengths]


def prompts_of(ids: Sequence[Int32s], keys: Sequence[int] | None = None) -> Prompts:
    tokens = Tokens(np.concatenate(ids), offsets_of(np.array([len(i) for i in ids], np.int64)))
    return Prompts(tokens, np.array(range(len(ids)) if keys is None else keys, np.uint64))


TRIAL = prompts_of(texts((4, 4, 7), seed=9)).tokens


def stepper_of(model: Any, seed: int = 3, max_length: int | None = 512, logprobs: bool = False, **settings: Any) -> Any:
    asked = {"do_sample": False, "max_new_tokens": MAX_NEW_TOKENS, "num_beams": 1, **settings}
    return Stepper(model, word_piece_tokenizer(), Decoding(asked, seed, logprobs), max_length)


def alone(model: Any, prompt: Int32s, **settings: Any) -> list[list[int]]:
    """What generate() writes for this prompt alone, padding behind the end cut off."""
    asked = {"do_sample": False, "max_new_tokens": MAX_NEW_TOKENS, "num_beams": 1, **settings}
    ids = torch.from_numpy(prompt.astype(np.int64))[None]
    written = model.generate(ids, attention_mask=torch.ones_like(ids), **copy.deepcopy(asked))
    start = 1 if model.config.is_encoder_decoder else len(prompt)
    return [_until_end(row, model.generation_config.eos_token_id) for row in written[:, start:].tolist()]


def outputs(generated: Generated) -> list[list[int]]:
    return [generated.ids[a:b].tolist() for a, b in zip(generated.offsets[:-1], generated.offsets[1:], strict=True)]


def nothing(finished: int, tokens: int) -> None:
    """An on_step that does not listen."""


def _until_end(ids: list[int], ends: list[int] | None) -> list[int]:
    places = [i for i, token_id in enumerate(ids) if token_id in (ends or [])]
    return ids[: places[0] + 1] if places else ids
