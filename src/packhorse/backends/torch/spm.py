"""SentencePiece's model files, read without its package: a protocol buffer of pieces, scores and a normalizer.

Field numbers are those of sentencepiece_model.proto; the encoding is https://protobuf.dev/programming-guides/encoding.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from packhorse.errors import ModelError

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)  # SentencePiece.Type
UNIGRAM = 1  # TrainerSpec.ModelType

Value = int | bytes


class Piece(NamedTuple):
    text: str
    score: float  # log-probability
    kind: int


class SentencePieceModel(NamedTuple):
    pieces: tuple[Piece, ...]
    model_type: int
    charsmap: bytes  # compiled rules that characters are normalized by; empty: none
    adds_prefix: bool  # a space before the text
    removes_spaces: bool  # before the text, behind it, and all but one between words
    escapes_spaces: bool  # as U+2581
    is_suffix: bool  # spaces belong to the word before them
    restores: bool  # decoded text is changed by rules of its own


def read_model(path: Path) -> SentencePieceModel:
    """Raises ModelError for what cannot be read as such a file."""
    try:
        fields = list(_fields(path.read_bytes()))
        pieces = tuple(_piece(value) for number, value in fields if number == 1)
        trainer, normalizer, restoring = ({**_last(fields, number)} for number in (2, 3, 5))
        return SentencePieceModel(
            pieces,
            model_type=int(trainer.get(3, UNIGRAM)),
            charsmap=bytes(normalizer.get(2, b"")),
            adds_prefix=bool(normalizer.get(3, 1)),
            removes_spaces=bool(normalizer.get(4, 1)),
            escapes_spaces=bool(normalizer.get(5, 1)),
            is_suffix=bool(trainer.get(24, 0)),
            restores=bool(restoring.get(2, b"")),
        )
    except (OSError, ValueError, TypeError, IndexError, struct.error) as error:
        raise ModelError(f"{path}: cannot be read as a SentencePiece model: {error}") from error


def _last(fields: list[tuple[int, Value]], number: int) -> dict[int, Value]:
    """The fields of that message; of several the later ones count, as the encoding has it."""
    return {n: value for outer, message in fields if outer == number for n, value in _fields(_message(message))}


def _piece(value: Value) -> Piece:
    fields = dict(_fields(_message(value)))
    (score,) = struct.unpack("<f", bytes(fields.get(2, b"\0\0\0\0")))
    return Piece(_message(fields.get(1, b"")).decode(), score, int(fields.get(3, NORMAL)))


def _message(value: Value) -> bytes:
    if isinstance(value, int):
        raise ValueError("a number where a message has to be")
    return value


def _fields(data: bytes) -> Iterator[tuple[int, Value]]:
    """Number and value of each field: whole numbers as such, all others as their bytes."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        if key & 7 == 0:
            value, at = _varint(data, at)
            yield key >> 3, value
            continue
        length, at = _varint(data, at) if key & 7 == 2 else ({1: 8, 5: 4}[key & 7], at)
        if at + length > len(data):
            raise ValueError("it ends in the middle of a field")
        yield key >> 3, data[at : at + length]
        at += length


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """A number of 7 bits a byte, the lowest first, and where it ends."""
    number = shift = 0
    while True:
        byte = data[at]
        number |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return number, at
