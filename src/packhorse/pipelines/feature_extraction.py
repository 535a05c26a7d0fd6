"""feature-extraction: the last hidden states of a text, [[[float] * width] * tokens] with the batch's one row in front.

Special tokens have theirs too, and nothing is pooled or normalized; packhorse.load(...).embed() gives one vector a
text.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from packhorse.pipelines.task import Given, Row, one_input

ENGINE_TASK = "multi-vector-embedding"


def parameters() -> frozenset[str]:
    return frozenset({"truncation", "padding", "tokenize_kwargs", "return_tensors"})


def settings(given: Given) -> dict[str, Any]:
    return {"normalize": False}


def inputs(args: Sequence[Any], given: dict[str, Any]) -> Any:
    return one_input(args, given, "inputs")


def row(item: Any, given: Given) -> Row:
    return Row(item)


def results(table: pa.Table, items: Sequence[Any], given: Given) -> list[Any]:
    if not given.get("return_tensors"):
        return [[vectors] for vectors in table["embeddings"].to_pylist()]
    import torch

    column = table["embeddings"].combine_chunks()
    return [torch.from_numpy(_array(vectors))[None] for vectors in column]


def _array(vectors: pa.Scalar) -> np.ndarray:
    """[tokens, width]."""
    flat = vectors.values
    made: np.ndarray = flat.flatten().to_numpy(zero_copy_only=False).reshape(len(flat), -1)
    return made.copy()


def single(result: Any, item: Any, given: Given) -> Any:
    return result


def together(results: list[Any], items: Sequence[Any]) -> Any:
    return results
