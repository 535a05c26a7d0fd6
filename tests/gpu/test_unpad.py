"""unpad() on a GPU: the outputs of before, without the padding inside."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import packhorse
from tests.cpu import packable

LENGTHS = (120, 3, 7, 1, 64, 64)


def batch() -> dict[str, torch.Tensor]:
    rows = packable.ids_of(LENGTHS)
    ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    mask = torch.nn.utils.rnn.pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
    return {"input_ids": ids.cuda(), "attention_mask": mask.cuda()}


@torch.no_grad()
def call(model: Any) -> torch.Tensor:
    return model(**batch()).logits.float()


@pytest.mark.parametrize("fused", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", ["bert", "modernbert", "qwen3"])
def test_scores_are_those_of_before_and_restore_is_exact(kind: str, dtype: torch.dtype, fused: bool) -> None:
    model = packable.made(kind).to("cuda", dtype)
    before = call(model)
    assert before.std(0).max() > 0.05
    found = call(packhorse.unpad(model, fused=fused))
    torch.testing.assert_close(found, before, atol=0.05, rtol=0.05)
    assert torch.equal(call(packhorse.restore(model)), before)


def test_generation_gives_the_same_number_of_finite_tokens() -> None:
    """Greedy choices between near-equal tokens may differ in half precision; prompts and shape do not."""
    model = packable.made("qwen3", "AutoModelForCausalLM", use_cache=True).to("cuda", torch.bfloat16)
    inputs = {name: values.flip(1) for name, values in batch().items()}  # padding on the left
    options = {"max_new_tokens": 8, "min_new_tokens": 8, "do_sample": False, "pad_token_id": 0}
    before = model.generate(**inputs, **options)
    found = packhorse.unpad(model).generate(**inputs, **options)
    assert found.shape == before.shape
    assert torch.equal(found[:, : inputs["input_ids"].shape[1]], inputs["input_ids"])
    assert (found[:, -8] == before[:, -8]).float().mean() > 0.5
