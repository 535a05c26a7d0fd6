"""Which line of the user's code is running."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from types import FrameType
from typing import NamedTuple

# Code that a user does not change: what it does is told of the line that called it.
LIBRARIES = ("torch", "transformers", "accelerate", "bitsandbytes", "torchao", "torchmetrics", "peft", "tokenizers")
BELOW = (f"{Path(__file__).parent}/", contextlib.__file__)  # our own frames


class Place(NamedTuple):
    """file:line in function, of the innermost frame outside of libraries; inside: the innermost of a library other than
    torch below it, empty where there is none."""

    where: str
    inside: str = ""

    def __str__(self) -> str:
        return f"{self.where} (in {self.inside})" if self.inside else self.where


def this_place() -> Place:
    inside = ""
    for frame in _frames():
        path = frame.f_code.co_filename
        if path.startswith(BELOW) or path.startswith("<"):
            continue
        library, folder = next((found for found in _folders() if path.startswith(found[1])), ("", ""))
        if not library:
            return Place(_shown(frame), inside)
        if library != "torch" and not inside:
            inside = f"{library}/{path.removeprefix(folder)}:{frame.f_lineno} in {frame.f_code.co_name}"
    return Place("outside of Python", inside)


def _frames() -> Iterator[FrameType]:
    frame: FrameType | None = sys._getframe(2)
    while frame is not None:
        yield frame
        frame = frame.f_back


@cache
def _folders() -> tuple[tuple[str, str], ...]:
    """Of the libraries, by name."""
    specs = ((name, find_spec(name)) for name in LIBRARIES)
    return tuple((name, f"{Path(spec.origin).parent}/") for name, spec in specs if spec and spec.origin)


def _shown(frame: FrameType) -> str:
    """Below the working directory relative to it, else with the two folders around the file."""
    path = Path(frame.f_code.co_filename)
    shown = path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else Path(*path.parts[-3:])
    return f"{shown}:{frame.f_lineno} in {frame.f_code.co_name}"
