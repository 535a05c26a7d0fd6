"""Packed rows on a GPU against plain transformers on the processor, each row alone and in fp32."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import packhorse
from packhorse.backends.torch.reduce import pool_packed
from packhorse.packing import attention
from packhorse.packing.pack import make_pack
from tests.cpu import packable, reference

KINDS = ["bert", "modernbert", "qwen3"]  # all tokens; sliding windows; causal, with fewer key heads
HALF = ["bf16", "fp16"]
SCORES = {"fp32": 1e-4, "bf16": 0.02, "fp16": 0.005}  # largest difference of a score
COSINES = {"fp32": 1 - 1e-5, "bf16": 0.999, "fp16": 0.9999}
LENGTHS = (*packable.LENGTHS, *range(1, 64), *(5,) * 20)
TEXTS = packable.texts(LENGTHS)
Folders = Callable[..., Path]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    root = tmp_path_factory.mktemp("models")

    def folder(kind: str, auto: str = "AutoModelForSequenceClassification") -> Path:
        path = root / f"{kind}-{auto}"
        return path if path.exists() else packable.without_special_tokens(packable.save(path, kind, auto))

    return folder


def load(folder: Path, **settings: Any) -> packhorse.Engine:
    return packhorse.load(folder, **{"devices": "cuda"} | settings)


def scores(folder: Path, **settings: Any) -> np.ndarray:
    with load(folder, scores="all", **settings) as engine:
        return np.array(engine.predict(TEXTS)["scores"].to_pylist(), np.float32)


def alone(folder: Path) -> np.ndarray:
    expected = reference.logits(folder, TEXTS, max_length=packable.MAX_LENGTH).softmax(1).numpy()
    assert expected.std(0).max() > 0.02, "rows too alike to tell a mix-up"
    return expected


@pytest.mark.parametrize("precision", HALF)
@pytest.mark.parametrize("kind", KINDS)
def test_a_packed_classifier_gives_each_row_the_scores_it_has_alone(
    folders: Folders, kind: str, precision: str
) -> None:
    folder = folders(kind)
    with load(folder, scores="all", precision=precision, attention="packed") as engine:
        assert (engine.plan.attention, engine.plan.batching, engine.plan.device) == ("packed", "packed", "cuda")
        found = np.array(engine.predict(TEXTS)["scores"].to_pylist())
    np.testing.assert_allclose(found, alone(folder), atol=SCORES[precision])


@pytest.mark.parametrize("precision", HALF)
@pytest.mark.parametrize("pooling", ["mean", "cls", "max", "last"])
@pytest.mark.parametrize("kind", KINDS)
def test_packed_embeddings_are_those_of_each_row_alone(
    folders: Folders, kind: str, pooling: str, precision: str
) -> None:
    folder = folders(kind, "AutoModel")
    pool = {"mean": lambda h: h.mean(0), "cls": lambda h: h[0], "max": lambda h: h.amax(0), "last": lambda h: h[-1]}
    hidden = reference.hidden_states(folder, TEXTS, max_length=packable.MAX_LENGTH)
    expected = np.stack([pool[pooling](h).numpy() for h in hidden])
    with load(folder, precision=precision, attention="packed", pooling=pooling) as engine:
        found = engine.embed(TEXTS)
    norms = np.linalg.norm(found, axis=1) * np.linalg.norm(expected, axis=1)
    assert ((found * expected).sum(1) / norms).min() > COSINES[precision]


@pytest.mark.parametrize("kind", KINDS)
def test_fp32_has_no_kernel_for_packs_so_it_runs_padded_and_says_so(folders: Folders, kind: str) -> None:
    folder = folders(kind)
    with load(folder, scores="all", precision="fp32") as engine:
        if engine.plan.attention != "packed":
            assert any(note.startswith("padded:") for note in engine.plan.notes)
        found = np.array(engine.predict(TEXTS)["scores"].to_pylist())
    np.testing.assert_allclose(found, alone(folder), atol=SCORES["fp32"])


@pytest.mark.parametrize("precision", HALF)
@pytest.mark.parametrize("kind", KINDS)
def test_packed_and_padded_give_the_same_labels(folders: Folders, kind: str, precision: str) -> None:
    folder = folders(kind)
    packed = scores(folder, precision=precision, attention="packed")
    padded = scores(folder, precision=precision, attention="sdpa")
    np.testing.assert_allclose(packed, padded, atol=SCORES[precision])
    first, second = np.sort(padded, 1)[:, -1], np.sort(padded, 1)[:, -2]
    is_sure = first - second > 2 * SCORES[precision]
    assert is_sure.sum() > len(TEXTS) // 4
    assert (packed.argmax(1) == padded.argmax(1))[is_sure].all()


@pytest.mark.parametrize("precision", HALF)
@pytest.mark.parametrize("kind", packable.REFUSED)
def test_what_cannot_be_packed_is_not_packed_on_a_gpu_either(folders: Folders, kind: str, precision: str) -> None:
    with load(folders(kind), precision=precision) as engine:
        assert engine.plan.attention != "packed"
        assert any(note.startswith("padded:") for note in engine.plan.notes)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("heads", [(4, 4), (4, 2), (4, 1)], ids=str)
@pytest.mark.parametrize(("window", "causal"), [(None, False), (None, True), (8, False), (8, True), (500, True)])
def test_the_kernel_computes_what_the_processor_does(
    dtype: torch.dtype, heads: tuple[int, int], window: int | None, causal: bool
) -> None:
    lengths = np.array([300, 64, 64, 17, 1, 2, 130, 1], np.int64)
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, h, int(lengths.sum()), 64, generator=generator) for h in (heads[0], heads[1], heads[1]))
    options: dict[str, Any] = {"is_causal": causal, "sliding_window": window, "scaling": 0.2}
    module = torch.nn.Identity()
    expected, _ = attention.packed_attention(module, q, k, v, None, pack=make_pack(lengths, "cpu"), **options)
    on_gpu = [x.to("cuda", dtype) for x in (q, k, v)]
    found, _ = attention.packed_attention(module, *on_gpu, None, pack=make_pack(lengths, "cuda"), **options)
    assert found.shape == expected.shape and found.dtype == dtype
    torch.testing.assert_close(found.float().cpu(), expected, atol=0.03, rtol=0.03)


@pytest.mark.parametrize("skip", [0, 3])
@pytest.mark.parametrize("mode", ["mean", "cls", "max", "last"])
def test_pooling_on_the_gpu_is_that_on_the_processor(mode: str, skip: int) -> None:
    lengths = np.array([4, 9, 9, 30, 4, 100, 5], np.int64)
    hidden = torch.randn(int(lengths.sum()), 32, generator=torch.Generator().manual_seed(0))
    expected = pool_packed(hidden, make_pack(lengths, "cpu"), mode, skip)
    found = pool_packed(hidden.cuda(), make_pack(lengths, "cuda"), mode, skip)
    torch.testing.assert_close(found.cpu(), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("skip", [1, 2, 3])
def test_rows_no_longer_than_their_prompt_pool_on_the_gpu_as_on_the_processor(skip: int) -> None:
    lengths = np.array([3, 1, 5, 2], np.int64)
    hidden = torch.randn(int(lengths.sum()), 8, generator=torch.Generator().manual_seed(0))
    for mode in ("mean", "max"):
        expected = pool_packed(hidden, make_pack(lengths, "cpu"), mode, skip)
        found = pool_packed(hidden.cuda(), make_pack(lengths, "cuda"), mode, skip)
        torch.testing.assert_close(found.cpu(), expected, atol=1e-5, rtol=1e-5)
