"""What a task of packhorse.pipeline is made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import pyarrow as pa

from packhorse.errors import UsageError

CUT = ("truncation", "padding", "max_length")
Given = Mapping[str, Any]  # parameters of a call, those of the pipeline's making below them


class Row(NamedTuple):
    """What is predicted on. pair: a second text, or labels."""

    text: Any
    pair: Any = None


class PipelineTask(Protocol):
    """A module of packhorse.pipelines."""

    def parameters(self) -> frozenset[str]: ...  # of a call, by transformers' names
    def settings(self, given: Given) -> dict[str, Any]: ...  # of the engine; ValueError for what cannot be done
    def inputs(self, args: Sequence[Any], given: dict[str, Any]) -> Any: ...  # of a call; takes what it uses of given
    def row(self, item: Any, given: Given) -> Row: ...
    def results(self, table: pa.Table, items: Sequence[Any], given: Given) -> list[Any]: ...  # no row is in error
    def single(self, result: Any, item: Any, called: Given) -> Any: ...  # of a call with one item, and its parameters
    def together(self, results: list[Any], items: Sequence[Any]) -> Any: ...  # of a call with a list


def of_tokenizer(task: str, given: Given, *names: str) -> int | None:
    """max_length of the parameters that say how a text is cut, alone or in a dictionary of one of these names. That a
    text is cut and padded where it has to be is so in any case. Raises UsageError for others."""
    told = dict(given)
    for name in names:
        told |= given.get(name) or {}
    for name in names:
        unknown = [key for key in given.get(name) or {} if key not in CUT]
        if unknown:
            raise UsageError(f"{task}: {name}[{unknown[0]!r}] is not done here; there are {', '.join(CUT)}")
    length: int | None = told.get("max_length")
    return length


def one_input(args: Sequence[Any], given: dict[str, Any], *names: str) -> Any:
    """The positional argument, or the one of these names. Raises TypeError where there is none, or several."""
    found = [*args, *(given.pop(name) for name in names if name in given)]
    if len(found) != 1:
        raise TypeError(f"a pipeline is called with one positional argument or {' or '.join(names)}; got {len(found)}")
    return found[0]
