"""What tests ask of the vllm backend, with the stand-in for its package that lies here and with vLLM itself."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from packhorse.data import ModelDescription, Reduction, Tokens, offsets_of
from packhorse.generation import Decoding, Generated, Prompts
from packhorse.load_request import LoadRequest

FAKE = Path(__file__).parent  # for PYTHONPATH
VOCAB = 100
END = 7
BAD = 99  # stands in no prompt but in those that are to fail
NO_TOKENS = Tokens(np.empty(0, np.int32), np.zeros(1, np.int64))


def request_for(folder: Path, settings: dict[str, Any] | None = None, **decoding: Any) -> LoadRequest:
    description = ModelDescription(folder, None, "text-generation", 1, 8, 64)
    return LoadRequest(
        description=description, reduction=Reduction("generate"), device="cpu", precision="fp32", workers=1, threads=1,
        trial=NO_TOKENS, rows=NO_TOKENS, longest=None, attention="auto", provider="auto", onnx_file=None,
        compiled=False, model_key=lambda: "key", decoding=Decoding(settings or {}, **decoding),
    )  # fmt: skip


def prompts_of(rows: Sequence[Sequence[int]], keys: Sequence[int] | None = None) -> Prompts:
    ids = np.array([i for row in rows for i in row], np.int32)
    offsets = offsets_of(np.array([len(row) for row in rows], np.int64))
    return Prompts(Tokens(ids, offsets), np.array(range(len(rows)) if keys is None else keys, np.uint64))


def some_prompts(count: int, bad: Sequence[int] = ()) -> list[list[int]]:
    """Of lengths 1 to 5, no two alike; those in bad hold the token BAD."""
    rows = [[10 + i % 80, *range(i % 5), i // 80] for i in range(count)]
    return [[*row, BAD] if i in bad else row for i, row in enumerate(rows)]


def outputs_of(generated: Generated) -> list[list[int]]:
    at = generated.offsets
    return [generated.ids[start:end].tolist() for start, end in pairwise(at)]
