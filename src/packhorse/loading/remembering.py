"""Decisions of earlier jobs, and which of them hold for this one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version

import psutil

from packhorse.data import Tokens
from packhorse.devices.host import cpu_name, num_cores
from packhorse.loading.loader import Loader
from packhorse.tuning import cache
from packhorse.tuning.candidates import Candidate, JobSize
from packhorse.tuning.gate import Verdict
from packhorse.tuning.search import Decision

PACKAGES = ("packhorse", "torch", "transformers", "tokenizers", "onnxruntime", "openvino", "nncf")
# Settings that decide between ways; all others change rows and columns.
DECIDING = (
    "task", "backend", "provider", "devices", "precision", "tolerance", "attention", "compile", "batching",
    "batch_size", "max_batch_tokens", "max_length", "pooling", "prompt_name",
    "device_map", "max_memory",
)  # fmt: skip


def key(loader: Loader, job: JobSize, is_job: bool) -> str:
    """Of all that a decision depends on: model, machine, versions, settings, lengths and size of the job."""
    return cache.key(
        {
            "model": loader.material.key,
            "machine": [cpu_name(), num_cores(), round(psutil.virtual_memory().total / 2**30), loader.device],
            "versions": {name: number for name in PACKAGES if (number := installed_version(name))},
            "settings": {name: getattr(loader.settings, name) for name in DECIDING},
            "lengths": cache.length_profile(loader.material.lengths),
            "tokens": cache.job_bucket(job.tokens),
            "is_job": is_job,
        }
    )


def remember(key: str, mode: str, decision: Decision, rows: Tokens, verdicts: Mapping[str, Verdict]) -> None:
    """verdicts: reached on these rows, by name of the way."""
    cache.store(key, {"mode": mode, "decision": decision.to_json()}, cache.rows_digest(rows), verdicts)


def recall(key: str, mode: str) -> Decision | None:
    """None where there is none, where it is not of this version of packhorse, or where it was looked for less."""
    record = cache.load(key)
    try:
        if record is None or (mode == "full" and record["mode"] != "full"):
            return None
        return Decision.from_json(record["decision"])
    except (KeyError, ValueError):
        return None


def verdict(key: str, way: Candidate, rows: Tokens) -> Verdict | None:
    """What the accuracy gate found on these very rows."""
    return cache.verdicts(key, cache.rows_digest(rows)).get(way.name)


def for_job(decision: Decision, job: JobSize, verdict: Verdict | None) -> Decision:
    """The rates of an earlier job over the tokens of this one, and the verdict on its rows."""
    first, *others = decision.alternatives
    first = first.model_copy(update={"accuracy": verdict and verdict._asdict(), "setup_s": 0.0})
    listed = []
    for way in (first, *others):
        rate = way.measured_tokens_per_s or way.predicted_tokens_per_s
        total_s = way.setup_s + job.run_s(rate) if rate else None
        listed.append(way.model_copy(update={"total_s": total_s}))
    return replace(decision, alternatives=tuple(listed), tuned_s=0.0, chosen_total_s=listed[0].total_s)


def installed_version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
