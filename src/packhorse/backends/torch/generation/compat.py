"""What generate()'s own methods take, from transformers 5.3 on: the methods are asked, not the version."""

from __future__ import annotations

import dataclasses
import inspect
from typing import Any

import torch
from transformers import GenerationConfig


def prepare_special_tokens(model: Any, config: GenerationConfig, device: torch.device) -> None:
    """Puts the special tokens into config as tensors, for rows without padding. Raises what transformers raises."""
    accepted = inspect.signature(model._prepare_special_tokens).parameters
    rows = {"batch_size": 1} if "batch_size" in accepted else {}  # 5.3 knows no difference
    model._prepare_special_tokens(config, True, device=device, **rows)


def with_cache_position(model: Any, kwargs: dict[str, Any], ids: torch.Tensor) -> dict[str, Any]:
    """The model's arguments before the first forward of ids [rows, tokens]; older transformers wants the tokens' places
    in the cache among them, [tokens], where newer ones ask the cache."""
    begin = getattr(model, "_get_initial_cache_position", None)
    begun: dict[str, Any] = kwargs if begin is None else begin(ids.shape[1], ids.device, kwargs)
    return begun


def encoder_penalty_knows_beams() -> bool:
    """Whether encoder_repetition_penalty looks, for each beam of a batch, at the source of that beam: until it did, row
    i of all prompts' beams got the ids of prompt i, and rows beyond the number of prompts none."""
    from transformers import EncoderRepetitionPenaltyLogitsProcessor

    sources = torch.tensor([[0], [1]])
    scores = EncoderRepetitionPenaltyLogitsProcessor(2.0, sources)(sources, torch.ones(4, 2))
    return torch.equal(scores[:2], scores[:1].expand(2, 2)) and torch.equal(scores[2:], scores[2:3].expand(2, 2))


def missing_for_paging() -> str | None:
    """Why transformers' continuous batching of this version is no engine; None where it is one."""
    if "max_requests_per_batch" in _paging_fields():
        return None
    return "continuous batching of this version of transformers cannot be told how many requests to run at a time"


def paging_config(page_tokens: int, num_pages: int, max_batch_tokens: int, max_requests: int) -> Any:
    """A ContinuousBatchingConfig. num_pages: of the cache, page_tokens tokens each. max_batch_tokens: of a forward."""
    from transformers import ContinuousBatchingConfig

    fields = _paging_fields()
    return ContinuousBatchingConfig(
        num_blocks=num_pages,
        max_batch_tokens=max_batch_tokens,
        max_requests_per_batch=max_requests,
        use_async_batching=False,
        **{"page_size" if "page_size" in fields else "block_size": page_tokens},
        **({"auto_switch_to_flash": False} if "auto_switch_to_flash" in fields else {}),
    )


def without_warmup(model: Any) -> dict[str, bool]:
    """For continuous_batching_context_manager(): warming up captures CUDA graphs of the largest batches."""
    accepted = inspect.signature(model.continuous_batching_context_manager).parameters
    return {"warmup": False} if "warmup" in accepted else {}


def _paging_fields() -> frozenset[str]:
    """Of transformers' ContinuousBatchingConfig, which 5.3 does not have."""
    try:
        from transformers import ContinuousBatchingConfig
    except ImportError:
        return frozenset()
    return frozenset(field.name for field in dataclasses.fields(ContinuousBatchingConfig))
