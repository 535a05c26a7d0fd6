"""What a pipeline is given: one item, many at once, or items one after another."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from typing import Any, NamedTuple


class Taken(NamedTuple):
    items: list[Any]
    failure: Exception | None  # of what gave the items, behind them
    is_end: bool


def is_many(inputs: Any) -> bool:
    """Whether a list of results is expected: a list, or a column (of numpy, pandas, Arrow or datasets)."""
    if isinstance(inputs, str | bytes | tuple | Mapping):
        return False
    is_column = any(hasattr(inputs, name) for name in ("tolist", "to_pylist")) and hasattr(inputs, "__len__")
    return isinstance(inputs, Sequence) or (is_column and getattr(inputs, "ndim", 1) == 1)


def values_of(inputs: Any) -> list[Any]:
    """Items of many, as Python has them."""
    if isinstance(inputs, list):
        return inputs
    for name in ("to_pylist", "tolist"):
        if hasattr(inputs, name):
            return list(getattr(inputs, name)())
    return list(inputs)


def is_stream(inputs: Any) -> bool:
    """Whether an iterator of results is expected: a generator, an iterator, or a dataset (of torch or datasets)."""
    if isinstance(inputs, str | bytes | tuple | Mapping | Set):
        return False
    torch = sys.modules.get("torch")  # whose IterableDataset is no Iterator
    is_numbered = hasattr(inputs, "__getitem__") and hasattr(inputs, "__len__")
    is_iterable = torch is not None and isinstance(inputs, torch.utils.data.IterableDataset)
    return isinstance(inputs, Iterator) or is_numbered or is_iterable or hasattr(inputs, "features")


def iterated(inputs: Any) -> Iterator[Any]:
    """A dataset that only has items by number is asked for each."""
    if isinstance(inputs, Iterable):
        return iter(inputs)
    return (inputs[i] for i in range(len(inputs)))


def take(items: Iterator[Any], count: int) -> Taken:
    """So many of them. What fails is kept, so that results of the items before it can be given first."""
    taken: list[Any] = []
    try:
        for item in items:
            taken.append(item)
            if len(taken) == count:
                return Taken(taken, None, is_end=False)
    except Exception as failure:  # noqa: BLE001 - raised again behind the results of what came before
        return Taken(taken, failure, is_end=True)
    return Taken(taken, None, is_end=True)
