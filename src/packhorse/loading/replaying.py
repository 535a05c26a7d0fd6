"""A plan made elsewhere, carried out as it stands: --plan FILE."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from packhorse.errors import UsageError
from packhorse.loading.choosing import Chosen, Texts
from packhorse.loading.loader import Loader
from packhorse.plans import Plan
from packhorse.tuning.candidates import Candidate

WHERE = (
    "legal are what `packhorse plan --json` printed with --tune quick or full, and an output's _packhorse/manifest.json"
)
KEPT = ("task", "backend", "device", "precision", "attention", "compiled", "batching", "batch_size", "max_batch_tokens")


def read_plan(path: str) -> Plan:
    """A Plan as JSON, alone or as the `plan` of another object. Raises UsageError naming the file and what is wrong."""
    try:
        found = json.loads(Path(path).read_bytes())
    except OSError as error:
        raise UsageError(f"--plan {path}: cannot be read: {error}; {WHERE}") from error
    except ValueError as error:
        raise UsageError(f"--plan {path}: not JSON: {error}; {WHERE}") from error
    plan = found.get("plan", found) if isinstance(found, dict) else None
    if not isinstance(plan, dict):
        raise UsageError(f"--plan {path}: there is no plan in it; {WHERE}")
    try:
        return Plan(**plan)
    except (ValidationError, TypeError) as error:
        raise UsageError(f"--plan {path}: not a plan of packhorse: {error}") from None


def replayed(loader: Loader, path: str, texts: Texts) -> Chosen:
    """The plan of the file for this job's model, columns and rows. What was decided from other rows, such as the
    tokenizer, is decided anew.

    Raises UsageError where the plan is for another task or device, or cannot be carried out with this model here.
    """
    asked = read_plan(path)
    if asked.task != loader.description.task:
        raise UsageError(f"--plan {path}: it is for {asked.task}, and this job does {loader.description.task}")
    if loader.description.writes:
        raise UsageError(f"--plan {path}: is for classification and embeddings; give its decisions as flags: --engine "
                         f"{asked.engine} --precision {asked.precision} --batch-size {asked.batch_size}")  # fmt: skip
    taken = Loader(loader.settings.model_copy(update=_settings(asked)), loader.material)
    if asked.device != taken.device.split(":")[0]:
        raise UsageError(f"--plan {path}: it is for {asked.device}, and this machine computes on {taken.device}")
    way = Candidate(
        asked.backend, asked.precision, asked.max_batch_tokens, asked.workers, asked.threads, asked.compiled
    )
    plan = taken.plan(way, *texts, (f"as {path} says; its accuracy is that of the rows it was made for",),
                      accuracy=asked.accuracy)  # fmt: skip
    differing = [name for name in KEPT if getattr(plan, name) != getattr(asked, name)]
    if differing:
        name = differing[0]
        raise UsageError(
            f"--plan {path}: {name} {getattr(asked, name)} is not possible with this model here, it would be "
            f"{getattr(plan, name)}; leave --plan out"
        )
    return Chosen(taken, plan)


def _settings(plan: Plan) -> dict[str, Any]:
    """The flags that lead to such a plan."""
    is_of_torch = plan.backend == "torch" and plan.attention != "packed"
    return {
        "backend": plan.backend,
        "precision": plan.precision,
        "attention": plan.attention if is_of_torch else "auto",
        "compile": plan.compiled or None,
        "batching": "auto" if plan.batching == "equal" else plan.batching,
        "batch_size": plan.batch_size,
        "max_batch_tokens": None if plan.batching == "fixed" else plan.max_batch_tokens,
    }
