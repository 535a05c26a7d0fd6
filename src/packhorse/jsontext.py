"""JSON as the standard has it: Python's own reader and writer let NaN and Infinity through."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any


def dumps(value: Any, default: Callable[[Any], Any] | None = None, ensure_ascii: bool = True) -> str:
    """The value as JSON text; a number that JSON has not becomes null, at any depth."""
    try:
        return json.dumps(value, default=default, ensure_ascii=ensure_ascii, allow_nan=False)
    except ValueError:
        return json.dumps(finite(value), default=default, ensure_ascii=ensure_ascii, allow_nan=False)


def finite(value: Any) -> Any:
    """The value with null for NaN and infinities."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {k: finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [finite(v) for v in value]
    return value


def is_strict(text: str) -> bool:
    """Whether text that Python's json reads is JSON in the standard's sense too."""

    def refuse(word: str) -> None:
        raise ValueError(word)

    try:
        json.loads(text, parse_constant=refuse)
    except ValueError:
        return False
    return True
