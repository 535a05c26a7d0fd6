"""feature-extraction: the last hidden states of a text, [[[float] * width] * tokens] with the batch's one row in front.

Special tokens have theirs too, and nothing is pooled or normalized; packhorse.load(...).embed() gives one vector a
text.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from packhorse.pipelines.task import Given, Row, of_tokenizer, one_input

ENGINE_TASK = "multi-vector-embedding"
TOGETHER = 1_024  # a text's vectors are 10,000 times as large as itself


def parameters() -> frozenset[str]:
    return frozenset({"truncation", "padding", "tokenize_kwargs", "return_tensors"})


def settings(given: Given) -> dict[str, Any]:
    return {"normalize": False, "max_length": of_tokenizer("feature-extraction", given, "tokenize_kwargs")}


def inputs(args: Sequence[Any], given: dict[str, Any]) -> Any:
    return one_input(args, given, "inputs")


def row(item: Any, given: Given) -> Row:
    return Row(item)


def results(table: pa.Table, items: Sequence[Any], given: Given) -> list[Any]:
    arrays = (_array(vectors) for chunk in table["embeddings"].chunks for vectors in chunk)
    if not given.get("return_tensors"):
        return [[array.tolist()] for array in arrays]
    import torch

    return [torch.from_numpy(array.copy())[None] for array in arrays]


def _array(vectors: pa.Scalar) -> np.ndarray:
    """[tokens, width] of one text."""
    flat = vectors.values
    made: np.ndarray = flat.flatten().to_numpy(zero_copy_only=False).reshape(len(flat), -1)
    return made


def single(result: Any, item: Any, called: Given) -> Any:
    return result


def together(results: list[Any], items: Sequence[Any]) -> Any:
    return results
