"""Padded rows on a GPU: torch's kernels, each pinned, against plain transformers on the processor."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import packhorse
from tests.cpu import packable, reference

TEXTS = packable.texts()
NAMES = ["flash", "efficient", "cudnn", "math"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return packable.without_special_tokens(packable.save(tmp_path_factory.mktemp("model"), "bert"))


@pytest.fixture(scope="module")
def expected(folder: Path) -> np.ndarray:
    return reference.logits(folder, TEXTS, max_length=packable.MAX_LENGTH).softmax(1).numpy()


def flags() -> dict[str, bool]:
    cuda = torch.backends.cuda
    return {
        "flash": cuda.flash_sdp_enabled(), "efficient": cuda.mem_efficient_sdp_enabled(),
        "math": cuda.math_sdp_enabled(), "cudnn": cuda.cudnn_sdp_enabled(),
    }  # fmt: skip


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("name", NAMES)
def test_a_pinned_kernel_gives_the_scores_of_transformers_and_is_the_only_one(
    folder: Path, expected: np.ndarray, monkeypatch: pytest.MonkeyPatch, name: str, precision: str
) -> None:
    seen: list[dict[str, bool]] = []
    original, before = torch.nn.functional.scaled_dot_product_attention, flags()

    def watched(*args: Any, **kwargs: Any) -> torch.Tensor:
        seen.append(flags())
        return original(*args, **kwargs)

    with packhorse.load(folder, devices="cuda", precision=precision, attention=f"sdpa:{name}", scores="all") as engine:
        assert engine.plan.attention == f"sdpa:{name}"
        assert engine.plan.batching in ("padded", "equal")  # a kernel that takes no mask runs rows of one length
        monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", watched)
        found = np.array(engine.predict(TEXTS)["scores"].to_pylist())
    assert seen and all(now == {other: other == name for other in now} for now in seen)
    assert flags() == before
    np.testing.assert_allclose(found, expected, atol=0.02)


@pytest.mark.parametrize("attention", ["sdpa", "eager", "sdpa:math", "sdpa:efficient"])
def test_fp32_is_as_exact_as_on_the_processor(folder: Path, expected: np.ndarray, attention: str) -> None:
    with packhorse.load(folder, devices="cuda", precision="fp32", attention=attention, scores="all") as engine:
        found = np.array(engine.predict(TEXTS)["scores"].to_pylist())
    np.testing.assert_allclose(found, expected, atol=1e-4)
