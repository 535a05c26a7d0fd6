"""The nouns that travel between the stages. Imports no framework but numpy and pyarrow."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from packhorse.late_interaction import LateInteraction

Int8s = npt.NDArray[np.int8]
Int32s = npt.NDArray[np.int32]
Int64s = npt.NDArray[np.int64]
UInt32s = npt.NDArray[np.uint32]
Float32s = npt.NDArray[np.float32]
Float64s = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]


# Pseudo-columns and metadata of rows that came as JSON lines: readers make them, writers know them.
RAW_LINE = "_raw_line"  # the line itself, for output as JSON lines
RESCUED = "_rescued_data"  # JSON text of what fits no column; the name is Databricks' Auto Loader's
JSON_TEXT = {b"packhorse.encoding": b"json"}  # metadata of a text column that holds JSON
WRITING_TASKS = ("text-generation", "text2text-generation", "summarization", "translation")
EMBEDDING_FORMAT = b"packhorse.embedding_format"  # metadata of the column with a model's vectors: how they stand there


def is_json_text(field: pa.Field) -> bool:
    """Whether a text column holds JSON."""
    return bool(field.metadata and JSON_TEXT.items() <= field.metadata.items())


class Position(NamedTuple):
    """Where reading goes on: the input file's number and a mark in it (a row for Parquet, a byte for lines)."""

    file: int
    mark: int
    check: int = 0  # CRC-32 of the file's bytes before the mark, where whoever goes on has to read them again


@dataclass(frozen=True, slots=True)
class Shard:
    """A contiguous range of rows: the unit of ordering, sorting, dedup, writing and resume."""

    index: int
    first_row: int
    num_rows: int
    start: Position
    end: Position


@dataclass(frozen=True, slots=True)
class Chunk:
    """Rows as a reader yields them: marks[i] is the Position.mark before row i, row_bytes what one row weighs."""

    table: pa.Table
    file: int
    marks: Int64s  # [n + 1]
    row_bytes: Int64s  # [n], a function of the input alone, never of where reading began
    errors: Mapping[int, RowError] = field(default_factory=dict)
    checks: UInt32s | None = None  # [n + 1], Position.check for each mark, where whoever goes on reads again

    def position(self, row: int) -> Position:
        """Before that row; after the last one where there is none of that number."""
        return Position(self.file, int(self.marks[row]), 0 if self.checks is None else int(self.checks[row]))


@dataclass(frozen=True, slots=True)
class RowError:
    """Why a row has no prediction; stands in the `error` column."""

    kind: str
    message: str


@dataclass(frozen=True, slots=True)
class Tokens:
    """Rows of token ids, flat like an Arrow list column: row i is ids[offsets[i]:offsets[i + 1]]."""

    ids: Int32s  # [T]
    offsets: Int64s  # [n + 1]
    type_ids: Int32s | None = None  # [T], for models that tell the two texts of a pair apart
    targets: Int32s | None = None  # [T] the token to be scored in the place of this one; -1: none

    @property
    def num_rows(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> Int64s:
        return np.diff(self.offsets)

    def take(self, rows: Int64s) -> Tokens:
        """The given rows in the given order."""
        lengths = self.lengths[rows]
        return self._at(ranges(self.offsets[rows], lengths), lengths)

    def first(self, most: int | Int64s) -> Tokens:
        """Of each row no more than its first tokens. most: of any row, or [n] of each."""
        lengths: Int64s = np.minimum(self.lengths, most)
        return self._at(ranges(self.offsets[:-1], lengths), lengths)

    def where(self, is_kept: Bools, lengths: Int64s) -> Tokens:
        """The tokens that are kept, [T] of bool; lengths: [n] of the rows then."""
        return self._at(is_kept, lengths)

    def _at(self, where: np.ndarray, lengths: Int64s) -> Tokens:
        type_ids, targets = (None if x is None else x[where] for x in (self.type_ids, self.targets))
        return Tokens(self.ids[where], offsets_of(lengths), type_ids, targets)


def offsets_of(lengths: Int64s) -> Int64s:
    """[n] lengths -> [n + 1] offsets."""
    offsets = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=offsets[1:])
    return offsets


def ranges(starts: Int64s, lengths: Int64s) -> Int64s:
    """start, start + 1, ... of each, as many as its length, one after the other."""
    offsets = offsets_of(lengths)
    places: Int64s = np.repeat(starts - offsets[:-1], lengths) + np.arange(offsets[-1])
    return places


@dataclass(frozen=True, slots=True)
class BatchPlan:
    """Which rows run together: batch b is order[cuts[b]:cuts[b + 1]]. A permutation and cut points, no more."""

    order: Int64s
    cuts: Int64s

    @property
    def num_batches(self) -> int:
        return len(self.cuts) - 1

    def rows(self, batch: int) -> Int64s:
        return self.order[self.cuts[batch] : self.cuts[batch + 1]]

    def fingerprint(self) -> str:
        return hashlib.sha256(self.order.tobytes() + self.cuts.tobytes()).hexdigest()


@dataclass(frozen=True, slots=True)
class Batch:
    """Some rows' tokens, without padding; a backend lays them out as it likes."""

    tokens: Tokens

    @property
    def num_rows(self) -> int:
        return self.tokens.num_rows

    @property
    def max_seqlen(self) -> int:
        return int(self.tokens.lengths.max(initial=0))

    @property
    def real_tokens(self) -> int:
        return int(self.tokens.offsets[-1])

    def padded(self, pad_id: int) -> tuple[Int64s, Bools, Int64s | None]:
        """ids, mask and type ids as [B, S], padded on the right to the batch's longest row."""
        mask = np.arange(self.max_seqlen) < self.tokens.lengths[:, None]
        ids = np.full(mask.shape, pad_id, np.int64)
        ids[mask] = self.tokens.ids
        type_ids = None
        if self.tokens.type_ids is not None:
            type_ids = np.zeros(mask.shape, np.int64)
            type_ids[mask] = self.tokens.type_ids
        return ids, mask, type_ids


@dataclass(frozen=True, slots=True)
class DenseLayer:
    """A sentence-transformers Dense module: a linear layer and an activation on the pooled vector."""

    folder: str
    in_features: int
    out_features: int
    bias: bool
    activation: str
    residual: bool = False


@dataclass(frozen=True, slots=True)
class Reduction:
    """What a backend leaves of a forward, as data; float32. Or it writes (generate).

    classify   scores of labels, a row
    pool       one vector a row, pooled, projected and normalized
    tokens     scores of labels, a token
    spans      logits of beginning and end of an answer, a token
    vectors    a vector a token, projected and normalized
    fill       for each mask token the top_k likeliest tokens, `ids | probabilities`, or the probabilities of `columns`
    sparse     of each row the vocabulary's places that are not 0, `row | place | weight`: the largest log(1 + relu(x))
               of its tokens, or their sum; a row without any has `row | 0 | 0`
    score      log-probability of a token: of each but a row's first under those before it, 0 for the first; of
               Tokens.targets where is_masked
    """

    kind: Literal["classify", "pool", "generate", "tokens", "spans", "vectors", "fill", "sparse", "score"]
    width: int = 0  # columns of the result; 0 until the model is loaded, where its config does not tell
    activation: Literal["softmax", "sigmoid", "none", "log1p"] = "none"  # log1p: of sparse weights, once more
    pooling: tuple[str, ...] = ("mean",)
    skip_tokens: int = 0  # leading prompt tokens left out of the pooling
    post: tuple[DenseLayer | Literal["normalize"], ...] = ()
    top_k: int = 0
    columns: tuple[int, ...] = ()  # of the vocabulary
    mask_id: int = -1
    is_masked: bool = False
    unattended_id: int = -1  # of vectors: tokens of this id at a row's end look at the others, and none at them

    @property
    def per(self) -> Literal["row", "token", "mask", "target", "entry"]:
        """What there is a line of values for."""
        if self.kind == "score" and self.is_masked:
            return "target"
        kinds = {"tokens": "token", "spans": "token", "vectors": "token", "score": "token", "fill": "mask"}
        return (kinds | {"sparse": "entry"}).get(self.kind, "row")  # type: ignore[return-value]

    @property
    def reads_vocabulary(self) -> bool:
        """Whether the head's output is as wide as the vocabulary."""
        return self.kind in ("fill", "sparse", "score")


# Left out where they say nothing, so that graphs exported before there were such still have the same record.
NEWER: dict[str, Any] = {"top_k": 0, "columns": [], "mask_id": -1, "is_masked": False, "unattended_id": -1}


def reduction_json(reduction: Reduction) -> dict[str, Any]:
    """As JSON values. A Dense layer by its folder's name, so that a copied model keeps its reduction."""
    post = [asdict(p) | {"folder": Path(p.folder).name} if isinstance(p, DenseLayer) else p for p in reduction.post]
    values = asdict(reduction) | {"pooling": list(reduction.pooling), "post": post, "columns": list(reduction.columns)}
    return {name: value for name, value in values.items() if name not in NEWER or value != NEWER[name]}


# A token of this name in a tokenizer's vocabulary: it and all behind it are the unknown token to the model.
UNKNOWN_FROM = "\ufdd2unknown from here"


class TokenizerParts(NamedTuple):
    """A model's tokenizer as a backend loads it."""

    backend: Any  # tokenizers.Tokenizer
    takes_type_ids: bool  # whether the model tells the two texts of a pair apart by token types
    truncation_side: str  # right or left


class Adapter(NamedTuple):
    """A PEFT adapter, as its config and the header of its weights tell; they are merged into the model's at load."""

    folder: Path
    task: str | None  # None: its task_type is none that is computed here
    num_labels: int | None  # of the head that it brings; None: it brings none
    base: str | None  # name or path of the model that it was trained on


@dataclass(frozen=True, slots=True)
class ModelDescription:
    """What a model's folder says about it, before any weight is read."""

    folder: Path  # of the transformer itself
    commit: str | None  # of a hub model
    task: str
    num_layers: int
    attention_width: int  # heads x head size
    max_length: int | None  # tokens, special ones included; None: no limit known
    labels: tuple[str, ...] = ()
    problem_type: str | None = None
    pooling: Reduction = Reduction("pool")
    prompt: str = ""
    include_prompt: bool = True
    lower_case: bool = False
    adapter: Adapter | None = None
    source: str = "folder"  # weights or graph: what is to be loaded whatever else lies there; folder: that decides
    dtype: str | None = None  # that the weights were saved in, by torch's name
    is_encoder_decoder: bool = False
    architecture: str = ""  # the first that config.json names
    score_activation: str = "Identity"  # of text-ranking: what logits become scores by, as a name in torch.nn
    late: LateInteraction | None = None  # of multi-vector-embedding
    vocab_size: int | None = None

    @property
    def writes(self) -> bool:
        """Whether its task is to generate text."""
        return self.task in WRITING_TASKS
