"""The object a user holds: a loaded model that predicts rows in memory, streams, or runs a whole job."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from packhorse.config import EngineConfig, RunConfig, validated
from packhorse.data import Float32s, RowError
from packhorse.errors import UsageError
from packhorse.executors.local import Stop
from packhorse.jobs.job import Job
from packhorse.jobs.mirroring import check_can_mirror, with_format
from packhorse.loading import Loader
from packhorse.loading.choosing import Texts, choose
from packhorse.metrics import RunReport
from packhorse.outputs.manifest import RunFolder
from packhorse.outputs.mirrored import MirroredFolder
from packhorse.plans import Plan
from packhorse.prompts import as_chats, make_prompts
from packhorse.readers import check_no_options, open_input
from packhorse.readers.cut import ShardRows
from packhorse.readers.given import as_text_column, lists_column
from packhorse.readers.lists import column_inputs
from packhorse.readers.options import ReaderOptions
from packhorse.readers.table import TableReader
from packhorse.report.reporter import Reporter
from packhorse.selection import PAIRS, seen_text_column
from packhorse.shard import Budget, Stages, predict
from packhorse.stages import Reader
from packhorse.tuning.gate import MIN_JOB_ROWS
from packhorse.writers import make_writer

TEXT, PAIR = "text", "text_pair"
CHATS = "messages"
STREAM_ROWS = 1_024

AsColumn = Callable[[Sequence[Any], dict[int, RowError]], pa.Array]


class Engine:
    """A loaded model.

    >>> engine = packhorse.load("sentence-transformers/all-MiniLM-L6-v2")
    >>> engine.embed(["a text", "another"]).shape
    (2, 384)

    An Engine is used from one thread at a time. With precision "auto" it computes in fp32 until it is given
    2,000 rows or more at once; then bf16 is used if it agrees with fp32 on up to 512 of them.
    """

    def __init__(self, settings: EngineConfig, instead_of: Engine | None = None) -> None:
        """Loads model and tokenizer. instead_of: an engine that is closed, and whose model is taken over where the
        settings differ only in what a task makes of its values. Raises UsageError, RefusedError or ModelError."""
        self.settings = settings
        self._loader = Loader(settings.on_first_device())
        if instead_of is not None:
            self._loader.take_models(instead_of._loader)
            instead_of.close()
        self._stages: Stages | None = None
        wants_rows = settings.precision in ("auto", "int8", "fp8") or settings.tokenizer == "auto"
        self._is_open = wants_rows and not settings.exact and not self._loader.description.writes
        self._plan = self._decide([], None)

    @property
    def task(self) -> str:
        """text-classification, feature-extraction, text-generation, text2text-generation, summarization or
        translation."""
        return self._plan.task

    @property
    def folder(self) -> Path:
        """The transformer's own, of a hub model in the cache."""
        return self._loader.description.folder

    @property
    def plan(self) -> Plan:
        """What was decided so far: device, precision, token budget, maximum length."""
        return self._plan

    def predict(self, texts: Sequence[Any], pairs: Sequence[Any] | None = None) -> pa.Table:
        """Predictions for texts (or pairs of them), one row a text, in their order. Where text is generated a text may
        also be a list of chat messages, {"role", "content"}, which go through the model's chat template. For
        zero-shot-classification pairs are the labels of each row, a list of strings; without them load(labels=...)
        holds. For token-classification all texts may be lists of words.

        Returns a table with the columns of a run's output without the input's: for text-classification `label`,
        `score` (and `scores`), for feature-extraction `embedding`; last `error`, null or {kind, message}: a text
        that cannot be done (None, no string, lone surrogates) is an error in its row and no exception.
        Raises UsageError where texts and pairs differ in number, and where there are no labels.
        """
        if isinstance(texts, str):
            raise UsageError("predict takes a list of texts; for one text give [text]")
        if pairs is not None and len(pairs) != len(texts):
            raise UsageError(f"{len(texts)} texts and {len(pairs)} pairs: there must be as many")
        budget = Budget(self._plan.max_batch_tokens, self._plan.batch_size)
        if self._loader.description.writes:
            if pairs is not None:
                raise UsageError(f"{self.task} goes on from one text a row: leave pairs out")
            chats, errors = as_chats(texts)
            rows = ShardRows.of(pa.table({CHATS: chats}), errors) if chats is not None else _rows(texts, None)
            return predict(rows, self._writing(rows), budget)
        has_labels = self.task == "zero-shot-classification"
        if has_labels and pairs is None and self.settings.labels is None:
            raise UsageError("which labels? predict(texts, pairs=[[...], ...]) for each row, or load(labels=[...])")
        if self.task in PAIRS and pairs is None:
            raise UsageError(f"{self.task} reads two texts a row: predict(texts, pairs), as many of each")
        has_words = self.task == "token-classification" and any(isinstance(text, list | tuple) for text in texts)
        as_texts = lists_column if has_words else as_text_column
        rows = _rows(texts, pairs, as_texts, lists_column if has_labels else as_text_column)
        self._decide_anew(rows)
        budget = Budget(self._plan.max_batch_tokens, self._plan.batch_size)
        return predict(rows, self._ready(pairs is not None), budget)

    def generate(self, prompts: Sequence[Any]) -> list[Any]:
        """What the model writes on each prompt: a text, or a list of them with num_return_sequences above 1; None where
        a prompt cannot be done. A prompt is a text or a list of chat messages.

        Raises UsageError where the task is none that generates.
        """
        if not self._loader.description.writes:
            raise UsageError(f"generate() is for models that write, this engine does {self.task}: use predict()")
        return list(self.predict(prompts).column(0).to_pylist())

    def embed(self, texts: Sequence[str | None]) -> Float32s:
        """Embeddings as an array [N, D] in float32; a row of NaN where a text cannot be done. int8 comes with its
        scale multiplied in.

        Raises UsageError where the task is not feature-extraction, for the formats that keep a bit a number, and for
        combine "all".
        """
        if self.task != "feature-extraction":
            raise UsageError(
                f"embed() is for feature-extraction, this engine does {self.task}: use predict(), or load(task=...)"
            )
        if self.settings.embedding_format.endswith("binary"):
            raise UsageError(
                f"embed() gives numbers, and embedding_format {self.settings.embedding_format!r} has bits: "
                "use predict(), or load(embedding_format='float32')"
            )
        if self.settings.combine == "all":
            raise UsageError("embed() gives one embedding a text, and combine 'all' keeps several: use predict()")
        table = self.predict(texts)
        width = table.schema.field("embedding").type.list_size
        values = np.full((len(table), width), np.nan, np.float32)
        column = table["embedding"].combine_chunks()
        valid = column.is_valid().to_numpy(zero_copy_only=False)
        values[valid] = column.flatten().to_numpy(zero_copy_only=False).reshape(-1, width)
        if "embedding_scale" in table.column_names:
            values[valid] *= table["embedding_scale"].drop_null().to_numpy()[:, None]
        return values

    def stream(self, texts: Iterable[str | None], rows: int = STREAM_ROWS) -> Iterator[pa.Table]:
        """Tables as from predict(), one for every `rows` texts of an iterable that need not end."""
        waiting: list[str | None] = []
        for text in texts:
            waiting.append(text)
            if len(waiting) == rows:
                yield self.predict(waiting)
                waiting = []
        if waiting:
            yield self.predict(waiting)

    def run(self, input: Any, output: str, **job: Any) -> RunReport:
        """Every row of `input` to `output` on disk, as `packhorse run` does; the same call goes on after a stop.

        input: a path, glob or folder, a pyarrow table, pandas or polars frame, or datasets.Dataset.
        job: text_column, pair_column, limit, keep, output_prefix, shard_rows, on_error, max_error_rate, mirror, append,
        retry_errors, overwrite and progress, as packhorse.run() explains them. Raises a PackhorseError.
        """
        unfit = [name for name in job if name in EngineConfig.model_fields]
        if unfit:
            raise UsageError(f"{unfit[0]!r} is a setting of the engine: give it to load(), not to run()")
        self._drop_stages()  # the job may need other models
        return run_with(self._loader, self.settings, input, output, job)

    def close(self) -> None:
        """Frees the model and the tokenizer's threads."""
        if self._stages is not None:
            self._stages.tokenizer.close()
        self._stages = None
        self._loader.close()

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _decide(self, texts: list[str | None], pairs: list[str | None] | None) -> Plan:
        self._loader.see(texts, pairs)
        is_judged = self.settings.precision == "auto" or self.settings.tolerance is not None
        _, plan = choose(self._loader, len(texts) if is_judged else 0, Texts(TEXT, None), is_job=False)
        return plan

    def _decide_anew(self, rows: ShardRows) -> None:
        """Precision, tokenizer and the scales of int8 were left open for want of rows; now there may be enough."""
        enough = 1 if self.settings.precision in ("int8", "fp8") else MIN_JOB_ROWS
        if self._is_open and rows.table.num_rows >= enough:
            texts = [column_inputs(rows.table, name, rows.errors)[0] for name in rows.table.column_names]
            self._drop_stages()
            self._plan = self._decide(texts[0], texts[1] if len(texts) > 1 else None)
            self._is_open = False

    def _ready(self, has_pairs: bool) -> Stages:
        if self._stages is None or (self._stages.pair_column is not None) != has_pairs:
            self._drop_stages()
            plan = self._plan.model_copy(update={"pair_column": PAIR if has_pairs else None})
            self._stages = self._loader.stages(plan, keep=[])
        return self._stages

    def _writing(self, rows: ShardRows) -> Stages:
        """With the prompts of these rows: texts as they stand, or chats."""
        s, schema = self.settings, rows.table.schema
        messages = CHATS if CHATS in schema.names else None
        is_chat = bool(s.chat or s.system_prompt is not None or messages is not None)
        text = None if messages else TEXT
        folder = self._loader.description.folder
        prompts = make_prompts(schema, text, None, messages, is_chat, s.system_prompt, folder) if is_chat else None
        if self._stages is None or (self._stages.prompts is not None) != is_chat:
            self._drop_stages()
            self._stages = self._loader.stages(self._plan, keep=[], prompts=prompts)
        return dataclasses.replace(self._stages, prompts=prompts)

    def _drop_stages(self) -> None:
        if self._stages is not None:
            self._stages.tokenizer.close()
        self._stages = None


def run_with(
    loader: Loader | None,
    settings: EngineConfig,
    input: Any,
    output: str,
    job: dict[str, Any],
    stop: Stop | None = None,
) -> RunReport:
    """A job with a loader, or with one made of the settings once the input was found."""
    is_path = isinstance(input, str) or hasattr(input, "__fspath__")
    values = (
        settings.model_dump()
        | {"progress": "none"}
        | job
        | {"input": str(input) if is_path else "(in memory)", "output": str(output)}
    )
    config: RunConfig = validated(RunConfig, values)
    check_can_mirror(config, is_path)
    folder = RunFolder(config.output, config.output_is_file, files=make_writer(config.output_extension).files)
    stop = stop or Stop()
    reopen = partial(open_input, config.input, folder.places, ReaderOptions.of(config), on_wait=stop.check)
    reader: Reader = reopen() if is_path else _in_memory(input, config)
    if config.mirror:
        config = with_format(config, reader.files[0])
        files = make_writer(config.output_extension).files
        folder = MirroredFolder(config.output, is_file=False, store=folder.store, files=files)
    if config.template is None and config.messages_column is None:  # before a model is downloaded
        seen_text_column(config, reader.schema())
    reporter = Reporter("none" if config.quiet else config.progress)
    again = (lambda groups: reopen(groups=groups)) if is_path else None
    loader = loader or Loader(settings.on_first_device())
    return Job(config, loader, reader, folder, reporter, stop, again).run()


def _in_memory(rows: Any, config: RunConfig) -> Reader:
    check_no_options(ReaderOptions.of(config))
    return TableReader(rows)


def _rows(
    texts: Sequence[Any], pairs: Sequence[Any] | None, as_texts: AsColumn = as_text_column,
    as_pairs: AsColumn = as_text_column,
) -> ShardRows:  # fmt: skip
    """Texts as rows; what as_texts or as_pairs does not take becomes null and an error."""
    errors: dict[int, RowError] = {}
    columns = {TEXT: as_texts(texts, errors)}
    if pairs is not None:
        columns[PAIR] = as_pairs(pairs, errors)
    return ShardRows.of(pa.table(columns), errors)
