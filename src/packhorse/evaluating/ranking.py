"""Figures of retrieval from ranks, by the definitions of trec_eval (and so of pytrec_eval and BEIR).

Of a query with relevances g(d) of its judged documents, those that are not judged having 0, and d_1, d_2, ... as they
are ranked; a document is relevant where g(d) > 0, and R is how many are:

    nDCG@k    DCG@k / the DCG@k of the best order there is; DCG@k = sum over i <= k of max(g(d_i), 0) / log2(i + 1)
              (gains as they stand: Järvelin and Kekäläinen 2002, as trec_eval's ndcg_cut)
    MRR@k     1 / rank of the first relevant document, 0 where none is among the first k (recip_rank, cut at k)
    recall@k  relevant documents among the first k / R
    MAP@k     sum over the ranks i <= k of relevant documents of (relevant ones among the first i) / i, divided by R
              (map_cut)

Each is the mean over the queries that have a judgment; one without a relevant document has 0.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from packhorse.data import Float64s, Int64s

DEPTH = 100  # of the deepest figure


def figures(ranked: Int64s, judged: Sequence[Mapping[int, int]], ideal: Sequence[Sequence[int]]) -> dict[str, float]:
    """ranked: [queries, depth] numbers of documents, -1 where there are no more. judged: of each query the relevance of
    documents by their numbers. ideal: of each query all its relevances, of documents that are not in the corpus too."""
    of_queries = [of_query(row, gains, best) for row, gains, best in zip(ranked, judged, ideal, strict=True)]
    if not of_queries:
        return {}
    return {name: float(np.mean([found[name] for found in of_queries])) for name in of_queries[0]}


def of_query(ranked: Int64s, judged: Mapping[int, int], ideal: Sequence[int]) -> dict[str, float]:
    gains = np.array([max(judged.get(int(document), 0), 0) for document in ranked], np.float64)
    best = np.array(sorted((max(gain, 0) for gain in ideal), reverse=True), np.float64)
    num_relevant = max(int((best > 0).sum()), 1)
    return {
        "ndcg@10": _ndcg(gains, best, 10), "mrr@10": _reciprocal_rank(gains, 10),
        "recall@10": float((gains[:10] > 0).sum() / num_relevant),
        "recall@100": float((gains[:100] > 0).sum() / num_relevant),
        "map@100": _average_precision(gains[:100], num_relevant),
    }  # fmt: skip


def _ndcg(gains: Float64s, best: Float64s, k: int) -> float:
    largest = _dcg(best[:k])
    return _dcg(gains[:k]) / largest if largest else 0.0


def _dcg(gains: Float64s) -> float:
    return float((gains / np.log2(np.arange(2, len(gains) + 2))).sum())


def _reciprocal_rank(gains: Float64s, k: int) -> float:
    relevant = np.flatnonzero(gains[:k] > 0)
    return 1 / (1 + int(relevant[0])) if len(relevant) else 0.0


def _average_precision(gains: Float64s, num_relevant: int) -> float:
    is_relevant = gains > 0
    precisions = np.cumsum(is_relevant) / np.arange(1, len(gains) + 1)
    return float(precisions[is_relevant].sum() / num_relevant)
