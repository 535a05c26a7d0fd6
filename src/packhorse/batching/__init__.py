"""Stage 3, plan: which rows run together. One policy a file, each a function `plan` of one signature; pure numpy."""

from __future__ import annotations

import importlib

from packhorse.stages import Planner


def planner(batching: str) -> Planner:
    """The policy of that name."""
    policy: Planner = importlib.import_module(f"{__name__}.{batching}").plan
    return policy
