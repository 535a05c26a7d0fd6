"""What differs between versions of transformers, whichever of them is installed."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from transformers import GenerationConfig

from packhorse.backends.torch.generation import compat
from packhorse.backends.torch.generation.paged import unfit
from tests.cpu.generating import stepper_of
from tests.generators import tiny_llm


class Older:
    """generate()'s methods as transformers 5.3 has them."""

    def _prepare_special_tokens(self, config: Any, has_mask: bool, device: Any = None) -> None:
        self.seen = (config, has_mask, device)

    def _get_initial_cache_position(self, length: int, device: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
        return {**kwargs, "cache_position": torch.arange(length, device=device)}

    def continuous_batching_context_manager(self, block: bool = True) -> None: ...


class Newer:
    """As 5.23 has them."""

    def _prepare_special_tokens(self, config: Any, has_mask: bool, device: Any = None, batch_size: int = 0) -> None:
        self.seen = (config, has_mask, device, batch_size)

    def continuous_batching_context_manager(self, block: bool = True, warmup: bool = True) -> None: ...


def test_arguments_are_those_that_the_methods_take() -> None:
    older, newer, config = Older(), Newer(), GenerationConfig()
    compat.prepare_special_tokens(older, config, torch.device("cpu"))
    compat.prepare_special_tokens(newer, config, torch.device("cpu"))
    assert older.seen == (config, True, torch.device("cpu")) and newer.seen == (*older.seen, 1)
    assert compat.without_warmup(older) == {} and compat.without_warmup(newer) == {"warmup": False}


def test_places_in_the_cache_are_said_where_they_are_asked_for() -> None:
    ids = torch.zeros(2, 3, dtype=torch.long)
    assert compat.with_cache_position(Newer(), {"use_cache": True}, ids) == {"use_cache": True}
    assert compat.with_cache_position(Older(), {}, ids)["cache_position"].tolist() == [0, 1, 2]


@pytest.mark.parametrize("size", ["block_size", "page_size"])
def test_pages_are_named_as_the_version_names_them(size: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fields = ["num_blocks", "max_batch_tokens", "max_requests_per_batch", "use_async_batching", size]
    fields += ["auto_switch_to_flash"] if size == "page_size" else []
    made = dataclasses.make_dataclass("ContinuousBatchingConfig", [(name, Any, None) for name in fields])
    monkeypatch.setattr("transformers.ContinuousBatchingConfig", made, raising=False)
    assert compat.missing_for_paging() is None
    found = dataclasses.asdict(compat.paging_config(64, 7, 256, 5))
    assert (found.pop(size), found.pop("num_blocks"), found.pop("max_batch_tokens")) == (64, 7, 256)
    assert found.pop("max_requests_per_batch") == 5 and not any(found.values())


def test_a_version_without_limits_on_requests_is_no_paged_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    llama = tiny_llm("llama")
    stepper = stepper_of(llama)
    made = dataclasses.make_dataclass("ContinuousBatchingConfig", [("num_blocks", Any, None)])
    monkeypatch.setattr("transformers.ContinuousBatchingConfig", made, raising=False)
    assert "this version of transformers" in str(unfit(llama, stepper))


def test_whether_beams_share_their_sources_penalty_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    class First:
        """Row i of the beams gets the ids of source i, the others none."""

        def __init__(self, penalty: float, sources: torch.Tensor) -> None:
            self.penalty, self.sources = penalty, sources

        def __call__(self, ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
            return scores.scatter(1, self.sources, self.penalty)

    class Each(First):
        def __call__(self, ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
            return scores.scatter(1, self.sources.repeat_interleave(2, 0), self.penalty)

    monkeypatch.setattr("transformers.EncoderRepetitionPenaltyLogitsProcessor", First)
    assert not compat.encoder_penalty_knows_beams()
    monkeypatch.setattr("transformers.EncoderRepetitionPenaltyLogitsProcessor", Each)
    assert compat.encoder_penalty_knows_beams()
