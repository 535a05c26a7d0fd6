"""The way through an evaluation: the rows of a job, their values left on the device, metrics updated there."""

from __future__ import annotations

import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from packhorse.errors import UsageError
from packhorse.evaluating.evaluation import Evaluation
from packhorse.evaluating.opening import OnRows, Outcome, opened


def evaluate(
    model: str | Path, input: Any, label_column: str | None = None, *, queries: Any = None,
    qrels: str | Path | None = None, query_prompt_name: str | None = None,
    on_rows: OnRows = lambda rows, total: None, **settings: Any,
) -> Evaluation:  # fmt: skip
    """Metrics of a model's predictions on rows with labels. They are kept on the model's device, updated there, and
    copied once at the end.

    input: as for run(). label_column: with the label of each row, by name or number (text-classification; lists of them
    where several are true; numbers for regression), lists of tags (token-classification, whose text column holds lists
    of words), answers (question-answering), numbers (text-ranking, and feature-extraction of pairs, whose second text
    is in pair_column). perplexity has none.

    queries, qrels: measure retrieval with embeddings instead. input is the corpus, and both have columns _id or id, and
    text; a title, where there is one, is put before the text. qrels: lines of query, document and relevance between
    tabs, with or without a header, or TREC's four columns; or Parquet, JSONL or CSV with such columns.
    query_prompt_name: prompt of the queries, where the model has another for them than for documents.

    on_rows: is told how many rows are done, and of how many, about. settings, all optional, as for run(): input_format,
    delimiter, header, text_column, pair_column, limit, shard_rows, task, pooling, normalize, prompt_name, revision,
    adapter, long, stride, combine, function_to_apply, max_answer_len, handle_impossible_answer, backend, provider,
    onnx_file, devices (one), device_map, max_memory, offload_folder, precision, exact, tolerance, attention, compile,
    batching, batch_size, max_batch_tokens, max_length, tokenizer, tokenizer_threads and tune.

    Metrics by task: accuracy, F1, Matthews' correlation, calibration error and confusion matrix; F1 of entities; exact
    match and F1; Spearman's and Pearson's correlation; perplexity; nDCG, MRR, MAP and recall. Rows without a label, and
    those in error, are counted apart. Raises a PackhorseError.
    """
    check_installed()
    begin = time.perf_counter()
    if (queries is None) != (qrels is None):
        given, missing = ("--queries", "--qrels") if qrels is None else ("--qrels", "--queries")
        raise UsageError(f"packhorse eval: {given} without {missing}: retrieval needs both")
    with ExitStack() as stack:
        job = opened(model, input, settings, stack)
        if queries is None:
            if query_prompt_name is not None:
                raise UsageError(f"--query-prompt-name {query_prompt_name}: belongs to --queries")
            from packhorse.evaluating import labelled

            outcome = labelled.measured(job, label_column, on_rows)
        else:
            if label_column is not None:
                raise UsageError(f"--label-column {label_column}: the labels of --queries are in --qrels; leave it out")
            from packhorse.evaluating import retrieval

            outcome = retrieval.measured(job, queries, str(qrels), query_prompt_name, on_rows)
        return _evaluation(str(model), outcome, begin)


def check_installed() -> None:
    """Raises UsageError without torchmetrics."""
    from importlib.util import find_spec

    if find_spec("torchmetrics") is None:
        raise UsageError("packhorse eval needs torchmetrics: pip install 'packhorse[eval]'")


def _evaluation(model: str, outcome: Outcome, begin: float) -> Evaluation:
    tally, plan = outcome.tally, outcome.plan
    errors = {kind: count for kind, count in sorted(tally.errors.items()) if count}
    return Evaluation(
        model=model, input=outcome.input, task=plan.task, measured=outcome.measured, metrics=dict(outcome.metrics),
        headline=outcome.headline, rows=outcome.rows,
        computed_rows=outcome.computed_rows, measured_rows=tally.measured, unlabelled_rows=tally.unlabelled,
        error_rows=sum(errors.values()), errors=errors, truncated_texts=outcome.truncated_texts,
        seconds=outcome.end_s - outcome.start_s, setup_s=outcome.start_s - begin, device=plan.device,
        plan=plan.model_dump(mode="json"),
    )  # fmt: skip
