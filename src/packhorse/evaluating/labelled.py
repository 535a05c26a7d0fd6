"""An evaluation of rows that have labels, or need none."""

from __future__ import annotations

import dataclasses
import time
from collections import Counter

import pyarrow as pa

from packhorse.data import is_json_text
from packhorse.errors import UsageError
from packhorse.evaluating import measures
from packhorse.evaluating.device import Halving
from packhorse.evaluating.measures import MEASURED, UNLABELLED, make_measure
from packhorse.evaluating.opening import Job, OnRows, Outcome, Planned, Progress, columns_of, planned, shards
from packhorse.readers.columns import is_text, is_words
from packhorse.selection import PAIRS, Columns, sample_of
from packhorse.shard import Stages

NAMES = {
    "text-classification": "labels", "token-classification": "entities", "feature-extraction": "pairs",
    "question-answering": "answers", "text-ranking": "pairs", "perplexity": "texts",
}  # fmt: skip


def measured(job: Job, label_column: str | None, on_rows: OnRows) -> Outcome:
    """Raises UsageError, InputError or ModelError."""
    task = job.loader.description.task
    label = _label_column(job, task, label_column)
    columns = _columns(job, task, label)
    way = planned(job, columns, sample_of(job.reader, columns, job.config.limit), pairs=not _is_of_two(task))
    measure = make_measure(task, measures.Job(job.config, job.loader.description, way.stages, label))
    start = time.perf_counter()
    done = _run(job, columns, way, _ways(task, way.stages, columns), measure, on_rows)
    tally = measure.tally()
    tally.errors.update(done.errors)
    return Outcome(
        NAMES[task], job.config.input, way.plan, measure.result(), measure.headline, done.rows, done.rows, tally,
        done.truncated, start, time.perf_counter(),
    )  # fmt: skip


def _is_of_two(task: str) -> bool:
    """Whether a pair is two texts of their own."""
    return task == "feature-extraction"


def _ways(task: str, stages: Stages, columns: Columns) -> tuple[Stages, ...]:
    """The stages of each text of a pair, or those of a row."""
    if not _is_of_two(task):
        return (stages,)
    return stages, dataclasses.replace(stages, text_column=str(columns.pair))


@dataclasses.dataclass(slots=True)
class _Done:
    """What is counted on the host."""

    rows: int = 0
    truncated: int = 0
    errors: Counter[str] = dataclasses.field(default_factory=Counter)


def _run(
    job: Job, columns: Columns, way: Planned, ways: tuple[Stages, ...], measure: measures.Measure, on_rows: OnRows
) -> _Done:
    """All shards, to the state of the measure."""
    halving, done, progress = Halving(way.budget), _Done(), Progress(on_rows, way.total_rows)
    row_bytes = 4 * way.stages.model.reduction.width * len(ways)
    for rows in shards(job.config, job.reader, columns, row_bytes):
        progress.begin(rows.table.num_rows, len(ways))
        found = [halving.values_of(rows, stages, progress.batch) for stages in ways]
        measure.update(*found, rows)
        failed = {row: error.kind for values in reversed(found) for row, error in values.errors.items()}
        done.errors.update(failed.values())
        done.rows += rows.table.num_rows
        done.truncated += sum(values.tokenized.truncated_rows for values in found)
        progress.end()
    return done


def _label_column(job: Job, task: str, label: str | None) -> str:
    """Empty where there is none. Raises UsageError."""
    if task not in MEASURED:
        raise UsageError(f"packhorse eval: {task} is not measured; {', '.join(MEASURED)} are")
    names = ", ".join(job.reader.schema().names)
    if task in UNLABELLED:
        if label is not None:
            raise UsageError(f"--label-column {label}: {task} needs no labels; leave it out")
        return ""
    if task == "feature-extraction" and job.config.pair_column is None:
        raise UsageError(
            "packhorse eval: embeddings are measured on pairs of texts with a score each, --pair-column NAME and "
            "--label-column NAME, or on a corpus, --queries FILE and --qrels FILE"
        )
    if label is None:
        raise UsageError(f"packhorse eval: which column has the labels? --label-column NAME; there are {names}")
    if label not in job.reader.schema().names:
        raise UsageError(f"--label-column {label}: no such column; the input has {names}")
    return label


def _columns(job: Job, task: str, label: str) -> Columns:
    """Raises UsageError."""
    text, pair = job.config.text_column, job.config.pair_column
    if text is None and task not in PAIRS:
        fit = [f.name for f in job.reader.schema() if f.name not in (label, pair) and _is_input(f, task)]
        text = fit[0] if len(fit) == 1 else None
    if label and label in (text, pair):
        raise UsageError(f"--label-column {label}: is a column of the texts too; name another")
    return columns_of(job, job.reader, text, pair, [label] if label else [])


def _is_input(field: pa.Field, task: str) -> bool:
    """Whether a column may be what the task reads."""
    if task == "token-classification":
        return is_words(field.type) or is_json_text(field)
    return is_text(field.type) and not is_json_text(field)
