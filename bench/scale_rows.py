"""Rows that are made as they are read: any number of them, nothing on a disk, the same for ever.

Row i has the text str(i) and tokens that are a function of i alone, so that reading and tokenizing cost next to nothing
and what is left is planning, batching, finishing, writing and bookkeeping.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from packhorse.data import Chunk, Int32s, Int64s, Position, Tokens, offsets_of
from packhorse.loading import Loader
from packhorse.plans import Plan
from packhorse.readers.sample import even_rows
from packhorse.sequences import Tokenized
from packhorse.shard import Stages

CHUNK_ROWS = 16_384
ROW_BYTES = 16  # what a row is said to weigh
VOCABULARY = 30_000
MIN_TOKENS, MEAN_TOKENS, MAX_TOKENS = 3, 13, 64
GOLDEN = 0x9E3779B97F4A7C15  # 2**64 over the golden ratio: neighbours come out far apart (Knuth, TAOCP 3, 6.4)


class SyntheticReader:
    """A Reader of `num_rows` rows with one column, text. A mark is a row's number."""

    files: Sequence[str] = ("synthetic rows",)
    raw_column: str | None = None
    rescues = False

    def __init__(self, num_rows: int) -> None:
        self._num_rows = num_rows

    def schema(self) -> pa.Schema:
        return pa.schema([("text", pa.large_string())])

    def num_rows(self) -> int | None:
        return self._num_rows

    def progress(self, position: Position) -> float:
        return position.mark / max(self._num_rows, 1)

    def fingerprint(self) -> list[dict[str, object]]:
        return [{"path": self.files[0], "rows": self._num_rows}]

    def spread(self, places: int) -> list[Position]:
        return even_rows([self._num_rows], places)

    def read(self, start: Position, columns: Sequence[str], text_columns: Sequence[str]) -> Iterator[Chunk]:
        for row in range(start.mark, self._num_rows, CHUNK_ROWS):
            marks = np.arange(row, min(row + CHUNK_ROWS, self._num_rows) + 1)
            table = pa.table({"text": pa.array(marks[:-1]).cast(pa.large_string())})
            yield Chunk(table, 0, marks, np.full(table.num_rows, ROW_BYTES, np.int64))


class SyntheticTokenizer:
    """A Tokenizer of such texts, which are numbers in a row: tokens by arithmetic, none of the text's characters."""

    def tokenize(self, texts: Sequence[str | None], pairs: Sequence[str | None] | None) -> Tokenized:
        first = int(texts[0] or 0) if texts else 0
        return Tokenized(tokens_of(np.arange(first, first + len(texts))), {})

    def close(self) -> None: ...


def tokens_of(rows: Int64s) -> Tokens:
    """Lengths of a geometric distribution; the last ids of a row tell its number, so that no two rows are equal."""
    seed = _mixed(rows.astype(np.uint64))
    share = np.maximum((seed >> np.uint64(11)).astype(np.float64) / 2.0**53, 1e-12)
    lengths = MIN_TOKENS + np.floor(np.log(share) / np.log1p(-1 / (MEAN_TOKENS - MIN_TOKENS + 1))).astype(np.int64)
    np.minimum(lengths, MAX_TOKENS, out=lengths)
    offsets = offsets_of(lengths)
    place = np.arange(offsets[-1]) - np.repeat(offsets[:-1], lengths)
    ids: Int32s = (_mixed(place.astype(np.uint64) + np.repeat(seed, lengths)) % VOCABULARY).astype(np.int32)
    for back in range(1, MIN_TOKENS + 1):
        ids[offsets[1:] - back] = rows % VOCABULARY
        rows = rows // VOCABULARY
    return Tokens(ids, offsets)


def _mixed(values: Any) -> Any:
    """[n] uint64, a multiplication and a shift."""
    product = (values + np.uint64(1)) * np.uint64(GOLDEN)
    return product ^ (product >> np.uint64(29))


class SyntheticLoader(Loader):
    """A Loader whose stages have that tokenizer."""

    def stages(self, plan: Plan, *given: Any, **named: Any) -> Stages:
        made = super().stages(plan, *given, **named)
        made.tokenizer.close()
        return dataclasses.replace(made, tokenizer=SyntheticTokenizer())


def write_model(folder: Path) -> Path:
    """A classifier for the null backend: a config and a tokenizer of single characters."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "architectures": ["BertForSequenceClassification"], "model_type": "bert", "hidden_size": 32,
        "num_attention_heads": 4, "num_hidden_layers": 2, "max_position_embeddings": 512, "pad_token_id": 0,
        "id2label": {"0": "no", "1": "yes"},
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    vocabulary = {token: i for i, token in enumerate(["[PAD]", "[UNK]", *"0123456789"])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder
