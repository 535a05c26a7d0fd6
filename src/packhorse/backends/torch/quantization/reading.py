"""Values of --quantization-options: from what JSON has to what the libraries' settings take."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from packhorse.errors import UsageError, did_you_mean

FLAG = "--quantization-options"
FLOATS = {"float32": "float32", "fp32": "float32", "bfloat16": "bfloat16", "bf16": "bfloat16", "float16": "float16",
          "fp16": "float16", "float8_e4m3fn": "float8_e4m3fn", "float8_e5m2": "float8_e5m2"}  # fmt: skip

Read = Callable[[str, Any], Any]


def read_options(options: Mapping[str, Any], legal: Mapping[str, Read], whose: str) -> dict[str, Any]:
    """Every option read by what its name calls for. Raises UsageError for an unknown name or a value of another kind.

    whose: said in the message, as in "bitsandbytes int8".
    """
    for name in options:
        if name not in legal:
            raise UsageError(
                f"{FLAG} {name}=...: unknown to {whose}{did_you_mean(name, legal) or '.'} Legal, as {FLAG} NAME=VALUE, "
                f"are {', '.join(legal)}"
            )
    return {name: legal[name](name, value) for name, value in options.items()}


def boolean(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise _wrong(name, value, "true or false")
    return value


def whole_number(name: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise _wrong(name, value, "a whole number of 1 or more")
    return value


def number(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or value < 0:
        raise _wrong(name, value, "a number of 0 or more")
    return float(value)


def names(name: str, value: Any) -> list[str]:
    """A list of names, or one."""
    found = [value] if isinstance(value, str) else value
    if not isinstance(found, list | tuple) or not all(isinstance(item, str) for item in found):
        raise _wrong(name, value, 'a list of module names, as in ["lm_head", "score"]')
    return list(found)


def one_of(legal: Iterable[str]) -> Read:
    words = tuple(legal)

    def read(name: str, value: Any) -> str:
        if value not in words:
            raise _wrong(name, value, f"one of {', '.join(words)}")
        return str(value)

    return read


def dtype_of(legal: Iterable[str]) -> Read:
    """A torch.dtype by its name, or by packhorse's."""
    words = tuple(legal)

    def read(name: str, value: Any) -> Any:
        import torch

        full = FLOATS.get(str(value), value)
        if full not in words:
            raise _wrong(name, value, f"one of {', '.join(words)}")
        return getattr(torch, str(full))

    return read


def _wrong(name: str, value: Any, expected: str) -> UsageError:
    return UsageError(f"{FLAG} {name}={value}: has to be {expected}")
