"""What --devices means, before anything is known of the machine."""

from __future__ import annotations

import re

from packhorse.errors import did_you_mean

KINDS = ("cpu", "cuda", "mps", "xpu")
AS_THEY_STAND = ("auto", "all")
LEGAL = (
    "auto, cpu, cuda, cuda:N, mps, xpu, xpu:N; several, a process each: all, 0,1 (cuda:0,cuda:1), cuda:0,cuda:0, "
    "cpu:N (N processes)"
)


def parse_devices(text: str) -> tuple[str, ...]:
    """One name a process; `auto` and `all` as they stand. Raises ValueError."""
    if text in AS_THEY_STAND:
        return (text,)
    names = tuple(name for part in text.split(",") for name in _names(part.strip(), text))
    kinds = sorted({name.split(":")[0] for name in names})
    if len(kinds) > 1:
        raise ValueError(
            f"--devices {text}: {' and '.join(kinds)} differ in the last bits of a result, and an output is of one "
            f"kind of device: leave one of them out"
        )
    return names


def _names(part: str, text: str) -> tuple[str, ...]:
    if part.isdigit():
        return (f"cuda:{int(part)}",)
    if (counted := re.fullmatch(r"cpu:(\d+)", part)) and int(counted[1]):
        return ("cpu",) * int(counted[1])
    if part in KINDS or re.fullmatch(r"(cuda|xpu):\d+", part):
        return (part,)
    raise ValueError(f"--devices {text}: legal are {LEGAL}{did_you_mean(part, (*KINDS, *AS_THEY_STAND))}")
