"""A pipeline that was made: from what a call is given to results, by an engine."""

from __future__ import annotations

import functools
import importlib
import warnings
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from packhorse.config import EngineConfig, validated
from packhorse.engine import Engine
from packhorse.errors import UsageError, did_you_mean
from packhorse.pipelines.task import PipelineTask

STREAMED = 1_024  # items of a generator or dataset that are computed together
IGNORED = ("batch_size", "num_workers", "clean_up_tokenization_spaces")


class Pipeline:
    """Called like a pipeline of transformers. `task`, `engine` (of the last call) and close(); a context manager."""

    def __init__(
        self, task: str, direction: str, settings: Mapping[str, Any], given: Mapping[str, Any],
        on_close: Callable[[], None],
    ) -> None:  # fmt: skip
        """direction: of a translation, as its name says it. given: call parameters that hold for every call."""
        self._settings = dict(settings)
        self._engine: Engine | None = None
        self._made_of: dict[str, Any] = {}
        self._finalizer = weakref.finalize(self, on_close)
        self._direction = direction
        self.task = task
        if task == "auto":
            self.task = self._load({"task": "auto"}).task
        self._task: PipelineTask = importlib.import_module(f"packhorse.pipelines.{self.task.replace('-', '_')}")  # type: ignore[assignment]
        self._engine_task = getattr(self._task, "ENGINE_TASK", self.task)  # feature-extraction means another thing here
        self._given = self._checked(dict(given))

    @property
    def engine(self) -> Engine:
        """What computes; loaded at the first call."""
        return self._load(self._task.settings(self._given) | {"task": self._engine_task})

    def __call__(self, *args: Any, **given: Any) -> Any:
        """A result, a list of them, or an iterator, as the input is one item, a list, or a generator or dataset.

        Raises ValueError for an item that cannot be done, naming it, TypeError or UsageError for wrong parameters.
        """
        inputs = self._task.inputs(args, given)
        merged = {**self._of_model, **self._given, **self._checked(given)}
        if isinstance(inputs, list):
            return self._task.together(self._results(inputs, merged, 0), inputs)
        if _is_stream(inputs):
            return self._streamed(inputs, merged)
        return self._task.single(self._results([inputs], merged, 0)[0], inputs, merged)

    @functools.cached_property
    def _of_model(self) -> Mapping[str, Any]:
        """What the model's config.json says of calls for this task."""
        says = getattr(self._task, "of_model", None)
        return {} if says is None else says(self._folder(), self._direction or self.task)

    def _folder(self) -> Path:
        given = Path(self._settings["model"])
        return given if (given / "config.json").is_file() else self._load({"task": self._engine_task}).folder

    def close(self) -> None:
        """Frees the model, and deletes a temporary folder."""
        if self._engine is not None:
            self._engine.close()
        self._engine = None
        self._finalizer()

    def __enter__(self) -> Pipeline:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _checked(self, given: dict[str, Any]) -> dict[str, Any]:
        """Without what is ignored. Raises UsageError for a parameter that the task has not."""
        for name in [name for name in IGNORED if name in given]:
            warnings.warn(f"{name}={given.pop(name)!r} is ignored: packhorse decides it", UserWarning, stacklevel=3)
        known = self._task.parameters()
        unknown = [name for name in given if name not in known]
        if unknown:
            raise UsageError(
                f"{self.task}: no parameter {unknown[0]!r}; it has {', '.join(sorted(known))}"
                + did_you_mean(unknown[0], tuple(known))
            )
        return given

    def _streamed(self, items: Iterable[Any], given: Mapping[str, Any]) -> Iterator[Any]:
        waiting: list[Any] = []
        done = 0
        for item in items:
            waiting.append(item)
            if len(waiting) == STREAMED:
                yield from self._results(waiting, given, done)
                done, waiting = done + len(waiting), []
        yield from self._results(waiting, given, done)

    def _results(self, items: Sequence[Any], given: Mapping[str, Any], before: int) -> list[Any]:
        """before: items of the same call that were done already."""
        if not items:
            return []
        engine = self._load(self._task.settings(given) | {"task": self._engine_task})
        rows = [self._task.row(item, given) for item in items]
        pairs = [row.pair for row in rows] if any(row.pair is not None for row in rows) else None
        if pairs is not None and any(pair is None for pair in pairs):
            return self._apart(items, given, before)
        table = engine.predict([row.text for row in rows], pairs)
        _raise_first(table, before)
        return self._task.results(table, items, given)

    def _apart(self, items: Sequence[Any], given: Mapping[str, Any], before: int) -> list[Any]:
        """Single texts and pairs that came together, each kind by itself; in the items' order."""
        is_pair = [self._task.row(item, given).pair is not None for item in items]
        results: list[Any] = [None] * len(items)
        for kind in (False, True):
            places = [i for i, pair in enumerate(is_pair) if pair == kind]
            for i, result in zip(places, self._results([items[i] for i in places], given, before), strict=True):
                results[i] = result
        return results

    def _load(self, of_task: Mapping[str, Any]) -> Engine:
        """The engine with these settings; that of the call before where they are the same."""
        wanted = {**self._settings, **of_task}
        if self._engine is None or wanted != self._made_of:
            if self._engine is not None:
                self._engine.close()
            self._engine = Engine(validated(EngineConfig, wanted))
            self._made_of = wanted
        return self._engine


def _is_stream(inputs: Any) -> bool:
    """A generator, an iterator, or what has items by number and is no text, mapping or tuple: a dataset."""
    if isinstance(inputs, str | bytes | Mapping | tuple):
        return False
    return isinstance(inputs, Iterator) or (hasattr(inputs, "__getitem__") and hasattr(inputs, "__len__"))


def _raise_first(table: pa.Table, before: int) -> None:
    error = table["error"].combine_chunks()
    if error.null_count < len(error):
        i = next(i for i, valid in enumerate(error.is_valid().to_pylist()) if valid)
        found = error[i].as_py()
        raise ValueError(f"item {before + i}: {found['kind']}: {found['message']}")
