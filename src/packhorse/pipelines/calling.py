"""A pipeline that was made: from what a call is given to results, by an engine."""

from __future__ import annotations

import functools
import importlib
import threading
import warnings
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from packhorse.engine import Engine
from packhorse.errors import UsageError, did_you_mean
from packhorse.pipelines.engines import Engines
from packhorse.pipelines.streams import is_many, is_stream, iterated, take, values_of
from packhorse.pipelines.task import PipelineTask, Row

FIRST, STREAMED = 64, 1_024  # items of a stream that are computed together: at first, doubled up to the second
TOGETHER = 16_384  # items of a list, where a task does not say fewer
IGNORED = ("batch_size", "num_workers", "clean_up_tokenization_spaces")


class Pipeline:
    """Called like a pipeline of transformers. `task`, `tokenizer`, `engine` and close(); a context manager.

    Threads may call it at the same time; they take turns.
    """

    def __init__(
        self, task: str, direction: str, settings: Mapping[str, Any], given: Mapping[str, Any],
        on_close: Callable[[], None], tasks: Sequence[str],
    ) -> None:  # fmt: skip
        """direction: of a translation, as its name says it. given: call parameters that hold for every call. tasks:
        those that there are."""
        self._engines = Engines(settings, on_close)
        self._finalizer = weakref.finalize(self, self._engines.close)
        self._lock = threading.RLock()
        self._direction = direction
        self.task = self._engines.task() if task == "auto" else task
        if self.task not in tasks:
            raise UsageError(f"this model is one for {self.task}, which no pipeline does: use packhorse.load()")
        self._task: PipelineTask = importlib.import_module(f"packhorse.pipelines.{self.task.replace('-', '_')}")  # type: ignore[assignment]
        self._engine_task = getattr(self._task, "ENGINE_TASK", self.task)  # feature-extraction means another thing here
        self._given = self._checked(dict(given))

    @property
    def engine(self) -> Engine:
        """What computes; that of the last call, unless the pipeline's own parameters ask for another."""
        with self._lock:
            return self._engine(self._merged({}))

    @functools.cached_property
    def tokenizer(self) -> Any:
        """transformers' own of the model's folder, to look things up in: what is set in it changes no result."""
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(self._engines.folder(), local_files_only=True, trust_remote_code=False)

    @property
    def model(self) -> Any:
        """There is none. Raises AttributeError."""
        raise AttributeError("a packhorse pipeline has no model object; .engine has the plan and the model's folder")

    def __call__(self, *args: Any, **given: Any) -> Any:
        """A result, a list of them, or an iterator, as the input is one item, a list, or a generator or dataset.

        Raises ValueError for an item that cannot be done, naming it (an iterator has given the results of those before
        it), TypeError or UsageError for wrong parameters.
        """
        inputs = self._task.inputs(args, given)
        called = self._checked(given)
        merged = self._merged(called)
        self._task.settings(merged)  # what is wrong there is said now, and not at an iterator's first result
        if is_many(inputs):
            return self._task.together(self._listed(values_of(inputs), merged), inputs)
        if is_stream(inputs):
            return self._streamed(iterated(inputs), merged)
        return self._task.single(self._listed([inputs], merged)[0], inputs, called)

    def close(self) -> None:
        """Frees the model, and deletes a temporary folder. The pipeline cannot be called any more."""
        with self._lock:
            self._finalizer()

    def __enter__(self) -> Pipeline:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @functools.cached_property
    def _of_model(self) -> Mapping[str, Any]:
        """What the model's config.json says of calls for this task."""
        says: Callable[[Path, str], Mapping[str, Any]] | None = getattr(self._task, "of_model", None)
        return {} if says is None else says(self._engines.folder(), self._direction or self.task)

    def _merged(self, called: Mapping[str, Any]) -> dict[str, Any]:
        """The parameters of a call over those of the pipeline's making, and these over the model's own."""
        merge: Callable[..., dict[str, Any]] | None = getattr(self._task, "merged", None)
        made = {**self._of_model, **self._given}
        return {**made, **called} if merge is None else merge(made, called)

    def _engine(self, given: Mapping[str, Any]) -> Engine:
        return self._engines.get(self._task.settings(given) | {"task": self._engine_task})

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

    def _listed(self, items: Sequence[Any], given: Mapping[str, Any]) -> list[Any]:
        size = getattr(self._task, "TOGETHER", TOGETHER)
        made: list[Any] = []
        for start in range(0, len(items), size):
            results, error = self._results(items[start : start + size], given, start)
            if error is not None:
                raise error
            made += results
        return made

    def _streamed(self, items: Iterator[Any], given: Mapping[str, Any]) -> Iterator[Any]:
        done, size = 0, FIRST
        while True:
            taken = take(items, size)
            results, error = self._results(taken.items, given, done)
            yield from results
            failure = error or taken.failure
            if failure is not None:
                raise failure
            if taken.is_end:
                return
            done, size = done + len(taken.items), min(2 * size, STREAMED)

    def _results(
        self, items: Sequence[Any], given: Mapping[str, Any], before: int
    ) -> tuple[list[Any], ValueError | None]:
        """Those of the items before the first that cannot be done, and what is wrong with that one. before: items of
        the same call that were done already."""
        rows, error = self._rows(items, given, before)
        if not rows:
            return [], error
        results: list[Any] = [None] * len(rows)
        problems: dict[int, str] = {}
        with self._lock:
            engine = self._engine(given)
            for places in _kinds(rows):
                table = _predicted(engine, [rows[i] for i in places])
                found = _problems(table)
                problems |= {places[i]: problem for i, problem in found.items()}
                good = [i for i in range(len(places)) if i not in found]
                if not good:
                    continue
                own = self._task.results(table.take(good) if found else table, [items[places[i]] for i in good], given)
                for i, result in zip(good, own, strict=True):
                    results[places[i]] = result
        first = min(problems, default=None)
        return (results, error) if first is None else (results[:first], _named(before + first, problems[first]))

    def _rows(self, items: Sequence[Any], given: Mapping[str, Any], before: int) -> tuple[list[Row], ValueError | None]:
        """Of the items before the first that is none of the task's."""
        rows: list[Row] = []
        for item in items:
            try:
                rows.append(self._task.row(item, given))
            except ValueError as error:
                return rows, _named(before + len(rows), str(error))
        return rows, None


def _named(item: int, problem: str) -> ValueError:
    return ValueError(f"item {item}: {problem}")


def _kinds(rows: Sequence[Row]) -> list[list[int]]:
    """The places of single texts and of pairs, which an engine does not take together."""
    kinds = [[i for i, row in enumerate(rows) if (row.pair is None) == is_single] for is_single in (True, False)]
    return [places for places in kinds if places]


def _predicted(engine: Engine, rows: Sequence[Row]) -> pa.Table:
    pairs = [row.pair for row in rows]
    return engine.predict([row.text for row in rows], None if pairs[0] is None else pairs)


def _problems(table: pa.Table) -> dict[int, str]:
    """What is wrong with each row that is in error."""
    errors = table["error"]
    if errors.null_count == len(errors):
        return {}
    return {i: f"{error['kind']}: {error['message']}" for i, error in enumerate(errors.to_pylist()) if error}
