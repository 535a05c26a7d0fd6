"""The documents nearest to each query, kept on the device while the corpus passes by."""

from __future__ import annotations

import torch
from torchmetrics import Metric

QUERIES_AT_ONCE, SCORES_AT_ONCE = 1_024, 2**22  # that there are at one time: 80 MiB with their keys
NOTHING = -(2**63)
LAST = 2**32 - 1  # documents at most


class Nearest(Metric):
    """keys [queries, depth]: of the best documents so far a number that is the larger the higher the score and, of
    equal scores, the earlier the document: the score's bits above, LAST less the document's number below. So the result
    depends on no order in which documents are compared."""

    full_state_update = False
    keys: torch.Tensor
    queries: torch.Tensor

    def __init__(self, queries: torch.Tensor, depth: int) -> None:
        """queries: [queries, width] float32."""
        super().__init__()
        self._depth = depth
        self.register_buffer("queries", queries)
        none = torch.full((len(queries), depth), NOTHING, dtype=torch.int64, device=queries.device)
        self.add_state("keys", none, None)

    def update(self, documents: torch.Tensor, numbers: torch.Tensor, is_valid: torch.Tensor) -> None:
        """[n, width] float32; [n] their numbers in the corpus; [n] which count."""
        at_once = max(SCORES_AT_ONCE // QUERIES_AT_ONCE, 1)
        for first in range(0, len(self.keys), QUERIES_AT_ONCE):
            queries = slice(first, first + QUERIES_AT_ONCE)
            for begin in range(0, len(documents), at_once):
                part = slice(begin, begin + at_once)
                scores = self.queries[queries] @ documents[part].T
                keys = torch.where(is_valid[part], sortable(scores, numbers[part]), NOTHING)
                together = torch.cat([self.keys[queries], keys], 1)
                self.keys[queries] = together.topk(self._depth, 1).values

    def compute(self) -> torch.Tensor:
        """[queries, depth] int64, numbers of the documents, the best first; -1 where there are no more."""
        return torch.where(self.keys == NOTHING, -1, LAST - (self.keys & LAST))


def sortable(scores: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
    """[queries, n] finite float32 and [n] -> [queries, n] int64 in the order of scores, then of numbers downwards. The
    bits of a float32, read as an integer, rise with it where it is positive, and fall where it is negative."""
    bits = (scores + 0.0).view(torch.int32)  # -0.0 is 0.0
    rising = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits).to(torch.int64)
    return (rising << 32) | (LAST - numbers)
