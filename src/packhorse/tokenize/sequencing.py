"""Rows to the sequences that a model sees, where that is more than a text cut to a length: windows over long texts, a
text with each of several labels, a text once for each of its tokens; and where in the texts each token stands."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from packhorse.data import Int32s, Int64s, RowError, Tokens, offsets_of, ranges
from packhorse.errors import UsageError
from packhorse.sequences import Origin, Sequencing, Tokenized
from packhorse.tokenize.encoder import Encoder, HfEncoder, Spans
from packhorse.tokenize.fast import Retokenized
from packhorse.tokenize.huge import MARGIN_TOKENS, TokenizeSettings, heads, too_long
from packhorse.tokenize.late import check_windows, late_tokens
from packhorse.tokenize.masking import each_masked, without_mask
from packhorse.tokenize.parts import Parts, cut_parts, label_parts, whole_parts, window_parts
from packhorse.tokenize.truncate import Layout, Raw, assemble, bare_layout, find_layout

NULL = RowError("null_text", "the text is null")
NO_TOKENS = RowError("no_tokens", "the tokenizer makes no token of this text")
NO_LABELS = RowError("no_labels", "the row has no label to try")
NULL_LABEL = RowError("null_label", "one of the row's labels is null")
SPECIAL = -1  # in place of a raw token's number


@dataclass(frozen=True, slots=True)
class _Side:
    """One of the two texts of rows: raw tokens [T], where those of each row begin [rows + 1], where they stand."""

    ids: Int32s
    offsets: Int64s
    spans: Spans | None = None
    cuts: Mapping[int, bool] = field(default_factory=dict)  # rows whose text was cut before; True: within a word

    @property
    def lengths(self) -> Int64s:
        return np.diff(self.offsets)


class SequenceTokenizer:
    """Texts to Tokenized, as a Sequencing says."""

    def __init__(
        self, backend: Any, settings: TokenizeSettings, sequencing: Sequencing, encoder: Encoder | None = None
    ) -> None:
        """encoder: of raw tokens; Hugging Face's own where none is given, as has to be where the sequencing is aligned.

        Raises UsageError where special tokens or the stride leave no room for a text.
        """
        self._sequencing = sequencing
        self._late, self._settings = late_tokens(backend, sequencing.late, settings)
        if sequencing.long == "windows":
            check_windows(self._settings)
        has_special = settings.with_special_tokens
        found = {n: find_layout(backend, n == 2) if has_special else bare_layout(n) for n in (1, 2)}
        self._layouts = {n: self._late.layout(layout) for n, layout in found.items()}
        self._encoder: Encoder = encoder or HfEncoder(backend, settings.threads)
        self._check_stride()

    def close(self) -> None:
        self._encoder.close()

    def is_of(self, encoder: Encoder | None) -> bool:
        """Whether it is this one that makes the tokens."""
        return self._encoder is encoder

    def tokenize(self, texts: Sequence[Any], pairs: Sequence[Any] | None) -> Tokenized:
        """texts: [n] a text, or a list of words where they are split. pairs: [n] second texts, or lists of labels. A
        row that cannot be done is in error, and has no sequence.

        Raises UsageError where the maximum length leaves no room for the special tokens, and for second texts where
        there can be none.
        """
        before = self._encoder.difference
        made = self._made(texts, pairs)
        difference = self._encoder.difference
        if difference is None or difference is before:
            return made
        again = self._made(texts, pairs)  # both texts of a row by the reference, whichever of them told
        rows = [i for i, row in enumerate(zip(texts, pairs or texts, strict=True)) if difference.text in row]
        values = {field.name: getattr(again, field.name) for field in dataclasses.fields(Tokenized)}
        return Retokenized(**values, difference=difference._replace(row=min(rows, default=0)))  # 0: it is a label's

    def _made(self, texts: Sequence[Any], pairs: Sequence[Any] | None) -> Tokenized:
        if pairs is not None and self._sequencing.is_single:
            raise UsageError("--pair-column, or pairs: this task reads one text a row; leave it out")
        labels = self._labels(len(texts), pairs) if self._sequencing.kind == "labels" else None
        errors = _unfit(texts, pairs, labels)
        if self._sequencing.joins and pairs is not None:
            joined = [None if i in errors else a + b for i, (a, b) in enumerate(zip(texts, pairs, strict=True))]
            texts, pairs = joined, None
        todo = [i for i in range(len(texts)) if i not in errors]
        sides = [self._side([texts[i] for i in todo], is_first=True)]
        if labels is not None:
            sides.append(self._hypotheses([labels[i] for i in todo]))
            parts = self._with_labels(sides, np.array([len(labels[i]) for i in todo], np.int64))
        else:
            if pairs is not None:
                sides.append(self._side([pairs[i] for i in todo], is_first=False))
            parts = self._parts(sides)
        return self._tokenized(sides, parts, np.array(todo, np.int64), errors, labels or ())

    def _tokenized(
        self, sides: list[_Side], parts: Parts, todo: Int64s, errors: dict[int, RowError],
        labels: Sequence[Sequence[str]],
    ) -> Tokenized:  # fmt: skip
        """todo: the rows that the parts are of."""
        made, numbers = self._assembled(sides, parts)
        refused = {**parts.refused, **self._cut_wrong(sides), **self._without_tokens(sides)}
        is_empty = made.lengths == 0
        if not self._sequencing.takes_empty:
            refused |= {int(parts.row_of[i]): NO_TOKENS for i in np.flatnonzero(is_empty)}
        if self._sequencing.mask_token:
            refused |= without_mask(made, parts, self._settings.mask_id)
        if refused or is_empty.any():
            is_kept = ~(np.isin(parts.row_of, list(refused)) | is_empty)
            numbers = numbers[np.repeat(is_kept, made.lengths)] if len(numbers) else numbers
            made, parts = made.take(np.flatnonzero(is_kept)), parts.only(is_kept)
        if self._sequencing.kind == "masked":
            first, stride = len(sides[0].ids) if len(sides) > 1 else 0, self._sequencing.stride
            made, parts = each_masked(made, parts, numbers, first, stride, self._settings.mask_id)
        errors |= {int(todo[i]): error for i, error in refused.items()}
        origin = _origin(sides, numbers) if self._sequencing.is_aligned else None
        row_of = todo[parts.row_of] if len(parts.row_of) else np.empty(0, np.int64)
        made = self._late.expanded(made)
        return Tokenized(
            made, dict(sorted(errors.items())), int((parts.lost > 0).sum()), int(parts.lost.sum()), row_of, origin,
            labels, self._late.is_skipped(made),
        )  # fmt: skip

    # -- texts

    def _labels(self, num_rows: int, pairs: Sequence[Any] | None) -> list[Sequence[str]]:
        return [self._sequencing.labels] * num_rows if pairs is None else [labels_of(given) for given in pairs]

    def _side(self, texts: list[Any], is_first: bool) -> _Side:
        s = self._sequencing
        is_split = is_first and isinstance(next(iter(texts), ""), list | tuple)
        cuts: Mapping[int, bool] = {}
        if self._may_clip and not is_split:
            texts, cuts = heads(texts, self._settings)
        if is_first and self._settings.prompt:
            texts = [self._settings.prompt + text for text in texts]
        if not (s.is_aligned or is_split):
            raw = self._encoder.encode([texts])[0]
            return _Side(raw.ids, offsets_of(raw.lengths), None, cuts)
        return self._aligned(texts, is_split, cuts)

    def _aligned(self, texts: list[Any], is_split: bool, cuts: Mapping[int, bool]) -> _Side:
        """With where tokens stand. Equal texts, as contexts of several questions are, are tokenized once."""
        number = {} if is_split else {text: i for i, text in enumerate(dict.fromkeys(texts))}
        assert isinstance(self._encoder, HfEncoder)  # nothing else says where tokens stand
        raw, spans = self._encoder.encode_aligned(texts if is_split else list(number), is_split)
        offsets = offsets_of(raw.lengths)
        if is_split or len(number) == len(texts):
            return _Side(raw.ids, offsets, spans, cuts)
        chosen = np.fromiter((number[text] for text in texts), np.int64, len(texts))
        lengths = raw.lengths[chosen]
        where = ranges(offsets[chosen], lengths)
        return _Side(raw.ids[where], offsets_of(lengths), Spans(*(values[where] for values in spans)), cuts)

    @property
    def _may_clip(self) -> bool:
        """Of a huge text only what can be used is tokenized, unless its end is, and where it stands is asked for."""
        s = self._sequencing
        return s.long == "truncate" and not (s.is_aligned and self._settings.truncation_side == "left")

    def _hypotheses(self, labels: list[Sequence[str]]) -> _Side:
        """A text for each label of each row; different labels are tokenized once."""
        different = {label: i for i, label in enumerate(dict.fromkeys(label for row in labels for label in row))}
        side = self._side([self._sequencing.template.format(label) for label in different], is_first=False)
        chosen = np.array([different[label] for row in labels for label in row], np.int64)
        tokens = Tokens(side.ids, side.offsets).take(chosen)
        return _Side(tokens.ids, tokens.offsets)

    # -- sequences

    def _room(self, num_texts: int) -> int | None:
        """Tokens that the texts of a sequence may have together."""
        if self._settings.max_length is None:
            return None
        special = self._layouts[num_texts].num_special
        if self._settings.max_length <= special:
            raise UsageError(
                f"--max-length {self._settings.max_length}: the special tokens of a row alone are {special}"
            )
        return self._settings.max_length - special

    def _cut_wrong(self, sides: list[_Side]) -> dict[int, RowError]:
        """Rows with a huge text whose beginning does not make enough tokens to be sure of them."""
        room = self._room(len(sides))
        wrong = [
            row for side in sides for row, is_hard in side.cuts.items()
            if room is None or side.lengths[row] < room * (1 + is_hard) + MARGIN_TOKENS
        ]  # fmt: skip
        return dict.fromkeys(wrong, too_long(self._settings))

    def _without_tokens(self, sides: list[_Side]) -> dict[int, RowError]:
        """Rows of which a text that has to makes no token."""
        return {
            int(row): RowError("no_tokens", f"the tokenizer makes no token of the {name}")
            for name, side in zip(self._sequencing.needs, sides, strict=False)  # trial rows have one text
            for row in np.flatnonzero(side.lengths == 0)
        }

    def _check_stride(self) -> None:
        s, room = self._sequencing, self._room(1)
        if s.long == "windows" and room is not None and s.stride >= room:
            raise UsageError(
                f"--stride {s.stride}: a window has {room} tokens beside the special ones, and as many as the stride "
                f"are those of the window before: give {room - 1} or fewer"
            )

    def _parts(self, sides: list[_Side]) -> Parts:
        room, lengths = self._room(len(sides)), [side.lengths for side in sides]
        if self._sequencing.long == "windows":
            return window_parts(lengths, room, self._sequencing.stride)
        if self._sequencing.long == "error":
            return whole_parts(lengths, room)
        return cut_parts(lengths, room, self._sequencing.cut, self._settings.truncation_side)

    def _with_labels(self, sides: list[_Side], counts: Int64s) -> Parts:
        text, labels = sides
        parts = label_parts(text.lengths, labels.lengths, counts, self._room(2), self._settings.truncation_side)
        return parts.without_cut() if self._sequencing.long == "error" else parts

    # -- tokens

    def _assembled(self, sides: list[_Side], parts: Parts) -> tuple[Tokens, Int32s]:
        """With special tokens, and [T] the number of each raw token, counted over the texts of both sides; SPECIAL."""
        is_by_label = self._sequencing.kind == "labels"
        raws, numbers, before = [], [], 0
        for i, (side, starts, lengths) in enumerate(zip(sides, parts.starts, parts.lengths, strict=True)):
            rows = np.arange(len(lengths)) if is_by_label and i else parts.row_of
            where = ranges(side.offsets[rows] + starts, lengths)
            raws.append(Raw(side.ids[where], lengths))
            numbers.append(Raw((where + before).astype(np.int32), lengths))
            before += len(side.ids)
        layout, s = self._layouts[len(sides)], self._settings
        made = assemble(raws, parts.lengths, layout, s.with_type_ids, s.truncation_side)
        if not self._sequencing.is_aligned and self._sequencing.kind != "masked":
            return made, np.empty(0, np.int32)
        marked = Layout(tuple((SPECIAL,) * len(gap) for gap in layout.gaps), layout.gap_types, layout.text_types)
        return made, assemble(numbers, parts.lengths, marked, False, s.truncation_side).ids


def labels_of(given: str | Sequence[str] | None) -> Sequence[str]:
    """A row's labels: a list, or a text with commas between them."""
    if isinstance(given, str):
        return [label.strip() for label in given.split(",") if label.strip()]
    return given or ()


def _unfit(
    texts: Sequence[Any], pairs: Sequence[Any] | None, labels: Sequence[Sequence[str]] | None
) -> dict[int, RowError]:
    errors = {i: NULL for i, text in enumerate(texts) if text is None}
    if labels is not None:
        errors |= {i: NO_LABELS for i, given in enumerate(labels) if not len(given) and i not in errors}
        errors |= {i: NULL_LABEL for i, given in enumerate(labels) if None in given and i not in errors}
    elif pairs is not None:
        errors |= {i: NULL for i, text in enumerate(pairs) if text is None}
    return errors


def _origin(sides: list[_Side], numbers: Int32s) -> Origin:
    """numbers: [T] of raw tokens, counted over both sides; SPECIAL."""
    spans = [side.spans for side in sides if side.spans is not None]
    places = [np.arange(len(side.ids)) - np.repeat(side.offsets[:-1], side.lengths) for side in sides]
    texts = [np.full(len(side.ids), i, np.int8) for i, side in enumerate(sides)]

    def of_tokens(values: list[np.ndarray], special: int) -> np.ndarray:
        chosen: np.ndarray = np.append(np.concatenate(values), values[0].dtype.type(special))[numbers]  # -1: the last
        return chosen

    return Origin(
        of_tokens(texts, -1), of_tokens([s.start for s in spans], 0), of_tokens([s.end for s in spans], 0),
        of_tokens([s.word for s in spans], -1), of_tokens(places, -1),
    )  # fmt: skip
