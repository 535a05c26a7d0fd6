"""The nouns of rows that become one sequence each, or several, and of values that are not one vector a row."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from packhorse.data import Bools, Float32s, Int8s, Int32s, Int64s, Reduction, RowError, Tokens, offsets_of, ranges
from packhorse.late_interaction import LateInteraction


@dataclass(frozen=True, slots=True)
class Sequencing:
    """How rows become the sequences that a model sees.

    kind: plain: a text (or a list of words, where is_aligned), or a pair; labels: a text with each of its labels;
    masked: a text once for each of its tokens (of a pair: of its second text), which is masked there. cut: what gives
    way where a pair is too long: the longer text, or one of the two. long: truncate: it is cut; windows: it becomes
    several sequences, `stride` tokens of which are those of the one before; error: it is a row in error.
    """

    kind: Literal["plain", "labels", "masked"] = "plain"
    long: Literal["truncate", "windows", "error"] = "truncate"
    stride: int = 0
    cut: Literal["longest", "first", "second"] = "longest"
    is_aligned: bool = False  # whether where tokens stand in their texts is asked for
    labels: tuple[str, ...] = ()  # of kind labels, for rows that bring none
    template: str = "{}"  # what a label stands in
    is_single: bool = False  # whether there is no second text
    mask_token: bool = False  # texts hold the model's mask token, by its name
    joins: bool = False  # a pair is one text, the second right behind the first; where it is cut, its beginning goes
    takes_empty: bool = False  # a text without tokens is no error: it has no sequence
    needs: tuple[str, ...] = ()  # what the texts are called, where each has to make a token
    usual_length: int | None = None  # most tokens of a sequence where no --max-length is given, special ones included
    late: LateInteraction | None = None  # tokens set beside the text's, and those whose values are not wanted

    @property
    def needs_mask(self) -> bool:
        """Whether the model's mask token has to be known."""
        expands = self.late is not None and self.late.expand_to is not None and self.late.expansion_token is None
        return self.mask_token or self.kind == "masked" or expands


@dataclass(frozen=True, slots=True)
class Origin:
    """Where each token comes from. A special token that no text brought has text -1, and 0 elsewhere."""

    text: Int8s  # [T] 0: the row's text, 1: that of its pair
    start: Int32s  # [T] its first character in that text (in its word, where texts are lists of words)
    end: Int32s  # [T] behind its last one
    word: Int32s  # [T] number of its word, as the tokenizer splits, or as they were given; -1 for special tokens
    place: Int64s  # [T] number of the token among those of the whole text: overlaps of windows have the same


@dataclass(frozen=True, slots=True)
class Tokenized:
    """A shard's rows as sequences of tokens. A row in error has no tokens."""

    tokens: Tokens  # of the sequences
    errors: Mapping[int, RowError]  # by row
    truncated_rows: int = 0
    truncated_tokens: int = 0  # at least: what stands beyond the first part of a huge text is not counted
    row_of: Int64s | None = None  # [sequences] ascending; None: sequence i is row i
    origin: Origin | None = None  # where Sequencing.is_aligned
    labels: Sequence[Sequence[str]] = ()  # of each row, where Sequencing.kind is labels
    is_skipped: Bools | None = None  # [T] whether a token leaves no vector, where Sequencing.late has such

    def first_sequences(self, num_rows: int) -> Int64s:
        """[num_rows + 1] where the sequences of each row begin, and the end of all."""
        if self.row_of is None:
            return np.arange(num_rows + 1)
        return np.searchsorted(self.row_of, np.arange(num_rows + 1)).astype(np.int64)


class MaskedTokens(Tokens):
    """Sequences, once for each of some of their tokens, which is masked there. Made where they are looked at: all of a
    shard's would be a hundred times its text. What is taken of them is of the same kind."""

    __slots__ = ("bare", "mask_id", "of", "places", "plain")
    bare: Tokens
    of: Int64s
    places: Int64s
    mask_id: int
    plain: Tokens | None  # once they were made

    def __init__(self, bare: Tokens, of: Int64s, places: Int64s, mask_id: int) -> None:
        """of: [S] numbers of the bare sequences; places: [S] the token that is masked, counted within its sequence."""
        offsets = offsets_of(bare.lengths[of])
        names = ("bare", "of", "places", "offsets", "mask_id", "plain")
        for name, value in zip(names, (bare, of, places, offsets, mask_id, None), strict=True):
            object.__setattr__(self, name, value)

    def __reduce__(self) -> Any:
        return MaskedTokens, (self.bare, self.of, self.places, self.mask_id)

    @property
    def ids(self) -> Int32s:  # type: ignore[override]
        return self._made().ids

    @property
    def type_ids(self) -> Int32s | None:  # type: ignore[override]
        return self._made().type_ids

    @property
    def targets(self) -> Int32s | None:  # type: ignore[override]
        return self._made().targets

    @property
    def masked_ids(self) -> Int32s:
        """[S] the tokens in whose places the mask stands."""
        return self.bare.ids[self.bare.offsets[self.of] + self.places]

    def take(self, rows: Int64s) -> MaskedTokens:
        return MaskedTokens(self.bare, self.of[rows], self.places[rows], self.mask_id)

    def _made(self) -> Tokens:
        if self.plain is not None:
            return self.plain
        made = self.bare.take(self.of)
        where = made.offsets[:-1] + self.places
        ids, targets = made.ids.copy(), np.full(len(made.ids), -1, np.int32)
        ids[where], targets[where] = self.mask_id, self.masked_ids
        plain = Tokens(ids, made.offsets, made.type_ids, targets)
        object.__setattr__(self, "plain", plain)
        return plain


@dataclass(frozen=True, slots=True)
class Ragged:
    """Values of which each sequence has its own number: those of sequence i are values[offsets[i]:offsets[i + 1]]."""

    values: Float32s  # [N, width]
    offsets: Int64s  # [sequences + 1]

    @property
    def num_rows(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> Int64s:
        return np.diff(self.offsets)

    def take(self, sequences: Int64s) -> Ragged:
        """The given ones in the given order; -1: one without values."""
        lengths = np.where(sequences >= 0, np.append(self.lengths, 0)[sequences], 0)
        where = ranges(np.append(self.offsets[:-1], 0)[sequences], lengths)
        return Ragged(self.values[where], offsets_of(lengths))


# Of values, by Reduction.per, for bounds of memory: a function of the settings alone, as where shards end has to be.
LINES_PER_ROW = {"row": 1, "token": 256, "target": 256, "entry": 256, "mask": 4}

Values = Float32s | Ragged  # [sequences, width], or as many as a reduction leaves of each


def first_values(values: Values, sequences: int) -> Values:
    """Of so many sequences from the first on."""
    if isinstance(values, Ragged):
        return Ragged(values.values[: values.offsets[sequences]], values.offsets[: sequences + 1])
    return values[:sequences]


def num_values(reduction: Reduction, tokens: Tokens, values: Float32s) -> Int64s | None:
    """[n] how many of the values [N, width] of a forward belong to each of its n sequences; None: one each."""
    if reduction.per == "row":
        return None
    if reduction.per == "token":
        return tokens.lengths
    if reduction.per == "entry":  # whose first column is the number of its sequence
        return np.bincount(values[:, 0].astype(np.int64), minlength=tokens.num_rows)
    is_chosen = tokens.ids == reduction.mask_id if reduction.per == "mask" else chosen(tokens)
    return np.add.reduceat(np.append(is_chosen, False).astype(np.int64), tokens.offsets[:-1]) * (tokens.lengths > 0)


SPARSE_PROJECTIONS = 16


def comparable(reduction: Reduction, values: Float32s) -> Float32s:
    """Values of a forward in a form in which rounding moves nothing to another place: of the likeliest tokens only the
    probabilities, of sparse rows [n, 16] sums with pseudo-random signs."""
    if reduction.kind == "fill" and not reduction.columns:
        return values[:, reduction.top_k :]
    if reduction.kind != "sparse":
        return values
    row, place = values[:, 0].astype(np.int64), values[:, 1].astype(np.uint64)
    mixed = (place + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    bits = (mixed[:, None] >> np.arange(40, 40 + SPARSE_PROJECTIONS, dtype=np.uint64)) & np.uint64(1)
    sums = np.zeros((int(row.max(initial=-1)) + 1, SPARSE_PROJECTIONS), np.float32)
    np.add.at(sums, row, values[:, 2:] * (2 * bits.astype(np.float32) - 1))
    return sums


def attended(reduction: Reduction, ids: Int64s, mask: Bools) -> Bools:
    """[B, S] of padded ids and their mask, the tokens that others attend to: Reduction.unattended_id."""
    if reduction.unattended_id < 0:
        return mask
    may_end = (ids == reduction.unattended_id) | ~mask
    ends: Bools = np.logical_and.accumulate(may_end[:, ::-1], 1)[:, ::-1]
    return mask & ~ends


def chosen(tokens: Tokens) -> np.ndarray:
    """[T] whether a token is one to be scored."""
    if tokens.targets is None:
        return np.zeros(len(tokens.ids), np.bool_)
    return tokens.targets >= 0


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """What the model's tokenizer knows of tokens."""

    detokenize: Callable[[Sequence[np.ndarray]], list[str]]  # ids to their texts, without special tokens
    decode: Callable[[Sequence[np.ndarray]], list[str]]  # the same with them
    token_text: Callable[[int], str]  # a token as it stands in the vocabulary: ##ing
    join: Callable[[Sequence[str]], str]  # such tokens to their text
    unknown_id: int  # of the token for what the vocabulary does not have; -1: there is none
    marks_subwords: bool  # whether tokens inside of words are written with a prefix: ##
    pad_id: int  # -1: there is none
    mask_id: int  # -1: there is none
    target_ids: Callable[[Sequence[str]], tuple[int, ...]]  # of --targets


@dataclass(frozen=True, slots=True)
class Results:
    """What a task makes columns of: the values of a shard's sequences, and what they are values of."""

    values: Values  # by sequence; of rows that are not valid anything
    is_valid: np.ndarray  # [rows] of bool
    tokenized: Tokenized
    texts: Sequence[Any]  # [rows] as they were tokenized: a text, or a list of words; None
    pairs: Sequence[Any] | None = None
    read_vocabulary: Callable[[], Vocabulary] | None = None  # reading takes a copy of the tokenizer: at first use

    @property
    def vocabulary(self) -> Vocabulary:
        assert self.read_vocabulary is not None
        return self.read_vocabulary()

    @property
    def num_rows(self) -> int:
        return len(self.is_valid)

    @property
    def is_one_each(self) -> bool:
        """Whether sequence i is row i."""
        return self.tokenized.row_of is None

    def dense(self) -> Float32s:
        """[sequences, width]."""
        assert not isinstance(self.values, Ragged)
        return self.values

    def ragged(self) -> Ragged:
        assert isinstance(self.values, Ragged)
        return self.values

    def firsts(self) -> Int64s:
        """[rows + 1] where the sequences of each row begin, and the end of all."""
        return self.tokenized.first_sequences(self.num_rows)
