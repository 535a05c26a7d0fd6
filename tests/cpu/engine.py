"""Engines on the processor, also where a GPU is present: the tolerances of these tests are a processor's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import packhorse


def load(model: str | Path, **settings: Any) -> packhorse.Engine:
    return packhorse.load(model, **{"devices": "cpu"} | settings)
