"""Decisions of earlier runs on this machine, a file each, in the user's cache: plans/<sha256>.json.

Beside a decision stand the verdicts of the accuracy gate, under a digest of the rows that they were reached on: a rate
is that of any rows with such lengths, a verdict is that of these rows alone.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from packhorse import jsontext
from packhorse.data import Int64s, Tokens
from packhorse.devices import host
from packhorse.tuning.gate import Verdict

KEPT = 256  # decisions; the one unused for longest goes first
KEPT_ROWS = 16  # inputs whose verdicts stand beside one decision; the first goes first
FORMAT = 1  # counted up when a file would be read differently
# Two quantiles: each more is one more border between two powers of 2 on which samples of one input can disagree. The
# largest length is left out, it differs between samples most.
QUANTILES = (0.5, 0.9)


def length_profile(lengths: Int64s) -> str:
    """Lengths of a sample of rows, as "p50=32 p90=128": quantiles, each rounded to a power of 2."""
    lengths = lengths[lengths > 0]
    if not len(lengths):
        return "no tokens"
    powers = [round(math.log2(n)) for n in np.quantile(lengths, QUANTILES)]
    return " ".join(f"p{100 * q:.0f}={2**power}" for q, power in zip(QUANTILES, powers, strict=True))


def job_bucket(tokens: float) -> int:
    """k where 4**k <= tokens < 4**(k + 1): jobs of one bucket repay about the same set-up. 0 below 4 tokens."""
    return max(math.frexp(tokens)[1] - 1, 0) // 2


def rows_digest(tokens: Tokens) -> str:
    """sha256 of a sample's token ids, where its rows end, and their types."""
    digest = hashlib.sha256()
    for array in (tokens.ids, tokens.offsets, tokens.type_ids):
        digest.update(b"-" if array is None else array.tobytes())
    return digest.hexdigest()


def key(parts: Mapping[str, Any]) -> str:
    """sha256 of all that a decision depends on, JSON values by name: model, versions, machine, settings, job."""
    return hashlib.sha256(json.dumps(dict(parts), sort_keys=True, allow_nan=False).encode()).hexdigest()


def load(key: str) -> dict[str, Any] | None:
    """The decision stored under that key, as JSON values; None where there is none, or no file that store() wrote."""
    record = _read(_path(key), key)
    if record is None:
        return None
    with contextlib.suppress(OSError):  # a cache that can only be read
        os.utime(_path(key))  # used now
    decision: dict[str, Any] = record["decision"]
    return decision


def verdicts(key: str, digest: str) -> dict[str, Verdict]:
    """The gate's verdicts on the rows of that digest, by name as in "torch bf16"; empty where there are none."""
    record = _read(_path(key), key) or {}
    return {name: Verdict(**values) for name, values in record.get("verdicts", {}).get(digest, {}).items()}


def store(key: str, decision: Mapping[str, Any], digest: str = "", found: Mapping[str, Verdict] | None = None) -> None:
    """Keeps a decision, and the verdicts found on the rows of that digest; those on other rows stay.

    Does nothing where the home cannot be written: the next run measures again. Raises TypeError for a decision that
    is no JSON.
    """
    path = _path(key)
    of_rows = (_read(path, key) or {}).get("verdicts", {})
    if found:
        of_rows[digest] = of_rows.pop(digest, {}) | {name: verdict._asdict() for name, verdict in found.items()}
    of_rows = dict(list(of_rows.items())[-KEPT_ROWS:])
    record = {"format": FORMAT, "key": key, "decision": dict(decision), "verdicts": of_rows}
    text = jsontext.dumps(record)
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(f".{os.getpid()}.tmp")
        temporary.write_text(text)
        temporary.replace(path)
        _drop_oldest(path.parent)


def _path(key: str) -> Path:
    return host.cache_folder() / "plans" / f"{key}.json"


def _read(path: Path, key: str) -> dict[str, Any] | None:
    """A record that can be relied on, else None: it is written anew."""
    try:
        record = json.loads(path.read_text())
        is_ours = record["format"] == FORMAT and record["key"] == key and isinstance(record["decision"], dict)
        for of_rows in record["verdicts"].values():
            for values in of_rows.values():
                Verdict(**values)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return record if is_ours else None


def _drop_oldest(folder: Path) -> None:
    by_age = sorted(folder.iterdir(), key=lambda path: path.stat().st_mtime_ns)
    for path in by_age[:-KEPT]:
        path.unlink(missing_ok=True)
