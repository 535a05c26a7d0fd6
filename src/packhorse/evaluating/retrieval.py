"""Retrieval with embeddings: each query against all documents, ranked on the device, and held against judgments."""

from __future__ import annotations

import dataclasses
import json
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.nn.functional import normalize

from packhorse.data import Int64s, ModelDescription
from packhorse.errors import InputError, UsageError
from packhorse.evaluating import ranking
from packhorse.evaluating.device import DeviceValues, Halving, device_of, moved
from packhorse.evaluating.documents import ID, TEXT, Documents
from packhorse.evaluating.measures import NOT_FINITE, Tally
from packhorse.evaluating.nearest import Nearest
from packhorse.evaluating.opening import Job, OnRows, Outcome, Planned, Progress, columns_of, planned, reader_of, shards
from packhorse.evaluating.qrels import Judgments, read_qrels
from packhorse.evaluating.row_values import RowValues
from packhorse.evaluating.states import on
from packhorse.loading import Loader
from packhorse.readers.cut import ShardRows
from packhorse.selection import Columns, sample_of

HEADLINE = ("ndcg@10", "mrr@10", "recall@10", "recall@100")
SIMILARITIES = ("cosine", "dot")
SETTINGS_FILE = "config_sentence_transformers.json"


def measured(job: Job, queries: Any, qrels: str, query_prompt_name: str | None, on_rows: OnRows) -> Outcome:
    """job: of the corpus. Raises UsageError, InputError or ModelError."""
    _check(job)
    similarity = similarity_of(job.loader.description)
    judgments = read_qrels(qrels)
    corpus = _side(job, Documents(job.reader, "the corpus", job.config.text_column))
    asked = _asked(job, corpus, queries, query_prompt_name)
    progress = Progress(on_rows, corpus.way.total_rows + asked.way.total_rows)
    start = time.perf_counter()
    embed = _Embedding(job, similarity == "cosine", progress)
    of_queries = embed.all_of(asked)
    nearest = on(Nearest(of_queries.vectors, ranking.DEPTH), device_of(corpus.way.stages.model))
    of_documents = embed.each_of(corpus, nearest)
    num_queries, num_documents = len(of_queries.ids), len(of_documents.ids)
    metrics, tally = _figures(of_queries, of_documents, nearest.compute().cpu().numpy(), judgments)
    return Outcome(
        "retrieval", job.config.input, corpus.way.plan, {**metrics, "similarity": similarity}, HEADLINE,
        num_queries, num_queries + num_documents, tally, embed.truncated, start, time.perf_counter(),
    )  # fmt: skip


class _Side(NamedTuple):
    """The corpus, or the queries."""

    job: Job
    reader: Documents
    columns: Columns
    way: Planned


def _side(job: Job, reader: Documents, way: Planned | None = None) -> _Side:
    """way: how it is computed, where that is known already."""
    columns = columns_of(job, reader, TEXT, None, [ID])
    sample = sample_of(reader, columns, job.config.limit)
    made = planned(job, columns, sample, pairs=False) if way is None else way
    return _Side(job, reader, columns, dataclasses.replace(made, total_rows=sample.total_rows))


def _asked(job: Job, corpus: _Side, queries: Any, prompt_name: str | None) -> _Side:
    """All queries, whatever --limit says of the corpus; with a prompt of their own by a model that computes them as the
    corpus is. Raises UsageError."""
    reader = reader_of(queries, job.config)
    text = job.config.text_column if job.config.text_column in reader.schema().names else None
    documents, plan = Documents(reader, "--queries", text), corpus.way.plan
    config = job.config.model_copy(update={"limit": None})
    if prompt_name is None:
        return _side(dataclasses.replace(job, config=config), documents, corpus.way)
    told = {"prompt_name": prompt_name, "precision": plan.precision, "backend": plan.backend, "tune": "off"}
    config = config.model_copy(update={**told, "tolerance": None})
    loader = Loader(config)
    job.stack.callback(loader.close)
    return _side(Job(config, loader, job.reader, job.stack), documents)


def _check(job: Job) -> None:
    """Raises UsageError."""
    task = job.loader.description.task
    if task != "feature-extraction":
        raise UsageError(f"--queries: retrieval is measured with embeddings, and this model does {task}")
    if job.config.pair_column is not None:
        raise UsageError(f"--pair-column {job.config.pair_column}: a document is one text; leave it out")


def similarity_of(description: ModelDescription) -> str:
    """cosine, or dot where the folder of a sentence-transformers model says so. Raises UsageError for others."""
    folders = (description.folder, description.folder.parent)
    found = [folder / SETTINGS_FILE for folder in folders if (folder / "modules.json").is_file()]
    name = next((_named(path) for path in found if path.is_file()), None) or "cosine"
    if name not in SIMILARITIES:
        raise UsageError(f"the model compares by {name}: retrieval is measured by {' or '.join(SIMILARITIES)}")
    return name


def _named(path: Path) -> str | None:
    name: str | None = json.loads(path.read_text(encoding="utf-8")).get("similarity_fn_name")
    return "dot" if name == "dot_product" else name


class _Rows(NamedTuple):
    """What is left of a side: ids and the errors of rows that have one; vectors [n, width] and which of them are finite
    on the device, of queries alone."""

    ids: list[str]
    failed: dict[int, str]  # kinds
    vectors: torch.Tensor
    is_finite: torch.Tensor


class _Embedding:
    def __init__(self, job: Job, is_cosine: bool, progress: Progress) -> None:
        self._by_row, self._is_cosine, self._progress = RowValues(job.config, by_tokens=True), is_cosine, progress
        self.truncated = 0

    def all_of(self, side: _Side) -> _Rows:
        """Raises InputError where there is none, or an id stands there twice."""
        ids: list[str] = []
        failed: dict[int, str] = {}
        vectors: list[torch.Tensor] = []
        for found, rows in self._shards(side):
            failed |= {len(ids) + row: error.kind for row, error in found.errors.items()}
            ids += rows.table[ID].to_pylist()
            vectors.append(self._vectors(found))
        _check_ids(ids, "--queries")
        together = torch.cat(vectors)
        is_finite = torch.isfinite(together).all(1)
        return _Rows(ids, failed, torch.where(is_finite[:, None], together, 0), is_finite)

    def each_of(self, side: _Side, nearest: Nearest) -> _Rows:
        """A shard's vectors are gone when they have been compared. Raises InputError as all_of()."""
        ids: list[str] = []
        failed: dict[int, str] = {}
        finite: list[torch.Tensor] = []
        for found, rows in self._shards(side):
            vectors = self._vectors(found)
            first, num_rows = len(ids), rows.table.num_rows
            has_value = np.ones(num_rows, np.bool_)
            has_value[list(found.errors)] = False
            finite.append(torch.isfinite(vectors).all(1))
            is_valid = moved(has_value, vectors.device) & finite[-1]
            numbers = torch.arange(first, first + num_rows, device=vectors.device)
            nearest.update(torch.where(is_valid[:, None], vectors, 0), numbers, is_valid)
            failed |= {first + row: error.kind for row, error in found.errors.items()}
            ids += rows.table[ID].to_pylist()
        _check_ids(ids, "the corpus")
        return _Rows(ids, failed, nearest.queries[:0], torch.cat(finite))

    def _shards(self, side: _Side) -> Iterator[tuple[DeviceValues, ShardRows]]:
        halving, stages = Halving(side.way.budget), side.way.stages
        for rows in shards(side.job.config, side.reader, side.columns, 4 * stages.model.reduction.width):
            self._progress.begin(rows.table.num_rows)
            found = halving.values_of(rows, stages, self._progress.batch)
            self.truncated += found.tokenized.truncated_rows
            yield found, rows
            self._progress.end()

    def _vectors(self, found: DeviceValues) -> torch.Tensor:
        """[rows, width]."""
        vectors = self._by_row(found)
        return normalize(vectors, dim=1) if self._is_cosine else vectors


def _check_ids(ids: list[str], which: str) -> None:
    """Raises InputError."""
    if not ids:
        raise InputError(f"{which}: there are no rows")
    twice = next((name for name, count in Counter(ids).most_common(1) if count > 1), None)
    if twice is not None:
        raise InputError(f"{which}: the id {twice!r} stands there more than once")


def _figures(queries: _Rows, documents: _Rows, ranked: Int64s, judgments: Judgments) -> tuple[dict[str, Any], Tally]:
    """ranked: [queries, depth]. Raises InputError where no query, or no document, is one of those judged."""
    tally, measured = _tallied(queries, judgments)
    numbers = {name: i for i, name in enumerate(documents.ids)}
    of_queries = [judgments[queries.ids[i]] for i in measured]
    judged = [{numbers[d]: g for d, g in of_query.items() if d in numbers} for of_query in of_queries]
    if not any(judged):
        seen = f"{len(queries.ids):,} queries and {len(numbers):,} documents"
        raise InputError(f"--qrels: none of its judgments is of a query and a document that are here ({seen})")
    figures = ranking.figures(ranked[measured], judged, [list(of_query.values()) for of_query in of_queries])
    return {
        **figures, "documents": len(numbers), "document_errors": dict(_errors(documents)),
        "judgments": sum(map(len, of_queries)),
        "judged_documents_not_in_corpus": sum(map(len, of_queries)) - sum(map(len, judged)),
        "judged_queries_not_in_queries": len(judgments.keys() - set(queries.ids)),
    }, tally  # fmt: skip


def _tallied(queries: _Rows, judgments: Judgments) -> tuple[Tally, list[int]]:
    """And the numbers of the queries that are measured: those with a vector and a judgment."""
    errors = _errors(queries)
    wrong = {*queries.failed, *np.flatnonzero(~queries.is_finite.cpu().numpy()).tolist()}
    sound = [i for i in range(len(queries.ids)) if i not in wrong]
    measured = [i for i in sound if queries.ids[i] in judgments]
    return Tally(len(measured), len(sound) - len(measured), errors), measured


def _errors(rows: _Rows) -> Counter[str]:
    errors = Counter(rows.failed.values())
    not_finite = set(np.flatnonzero(~rows.is_finite.cpu().numpy()).tolist()) - rows.failed.keys()
    return errors + Counter({NOT_FINITE: len(not_finite)})
