"""packhorse: offline batch inference for Hugging Face models.

    packhorse.run("./my-classifier", "reviews.parquet", "scored/")       every row's output on disk, exactly once
    engine = packhorse.load("sentence-transformers/all-MiniLM-L6-v2")    a loaded model
    engine.embed(["a text", "another"])                                  ndarray [N, D]
    engine.predict(texts)                                                pyarrow.Table with label, score, error
    engine.stream(lines)                                                 tables, as the lines come
    engine.run(frame, "vectors/")                                        the job, with a model that is loaded already
    packhorse.bench("./my-classifier", "reviews.parquet")                ways to run a model, side by side
    classify = packhorse.pipeline("text-classification", "./my-classifier")   as transformers.pipeline is called
    packhorse.evaluate("./my-classifier", "labelled.parquet", "label")   accuracy, F1, confusion and the like
    packhorse.verify("scored/")                                          re-checks every byte
    model = packhorse.unpad(model)                                       your own loop, without the padding inside
    packhorse.audit(model, batch)                                        your own loop: what lies where, moves or waits
    batch, metrics, moved = packhorse.align(batch, metrics, like=model)  what has to move to the model's device

The same from a terminal: `packhorse run MODEL INPUT -o OUTPUT`. Importing packhorse loads neither torch nor
transformers.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from packhorse.api import bench, load, plan, run, verify
    from packhorse.auditing.aligning import Aligned, align
    from packhorse.auditing.auditor import audit
    from packhorse.auditing.findings import Audit
    from packhorse.comparison.compare import Comparison
    from packhorse.engine import Engine
    from packhorse.errors import PackhorseError
    from packhorse.evaluating.evaluate import evaluate
    from packhorse.evaluating.evaluation import Evaluation
    from packhorse.explanation import Explanation
    from packhorse.exporting import Exported, export
    from packhorse.metrics import RunReport
    from packhorse.outputs.verification import Verification
    from packhorse.packing.unpad import restore, unpad
    from packhorse.pipelines.calling import Pipeline
    from packhorse.pipelines.making import pipeline

__version__ = "0.1.0"

_HOMES = {
    "align": "auditing.aligning",
    "Aligned": "auditing.aligning",
    "audit": "auditing.auditor",
    "Audit": "auditing.findings",
    "load": "api",
    "export": "exporting",
    "Exported": "exporting",
    "restore": "packing.unpad",
    "unpad": "packing.unpad",
    "run": "api",
    "bench": "api",
    "Comparison": "comparison.compare",
    "plan": "api",
    "pipeline": "pipelines.making",
    "Pipeline": "pipelines.calling",
    "evaluate": "evaluating.evaluate",
    "Evaluation": "evaluating.evaluation",
    "Explanation": "explanation",
    "verify": "api",
    "Engine": "engine",
    "RunReport": "metrics",
    "PackhorseError": "errors",
    "Verification": "outputs.verification",
}

__all__ = [
    "Aligned",
    "Audit",
    "Comparison",
    "Engine",
    "Evaluation",
    "Explanation",
    "Exported",
    "PackhorseError",
    "Pipeline",
    "RunReport",
    "Verification",
    "align",
    "audit",
    "bench",
    "evaluate",
    "export",
    "load",
    "pipeline",
    "plan",
    "restore",
    "run",
    "unpad",
    "verify",
]


def __getattr__(name: str) -> Any:
    """Public names are imported when first asked for."""
    if name not in _HOMES:
        raise AttributeError(f"module 'packhorse' has no attribute {name!r}")
    return getattr(import_module(f"packhorse.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
