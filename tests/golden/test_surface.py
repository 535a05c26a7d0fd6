"""What users build upon, pinned: names, flags, columns, exit codes, files. A change here is a change for them."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import packhorse
from packhorse import errors
from packhorse.config import EngineConfig, RunConfig
from tests.models import save_null_model

NAMES = [
    "Aligned", "Audit", "Comparison", "Engine", "Evaluation", "Explanation", "Exported", "PackhorseError", "Pipeline",
    "RunReport", "Verification", "align", "audit", "bench", "evaluate", "export", "load", "pipeline", "plan", "restore",
    "run", "unpad", "verify",
]  # fmt: skip

RUN_FLAGS = [
    "--adapter", "--aggregation", "--append", "--attention", "--backend", "--batch-size", "--batching", "--chat",
    "--choices", "--combine", "--compile", "--dedup", "--delimiter", "--device-map", "--devices", "--do-sample",
    "--embedding-format", "--engine", "--exact", "--function-to-apply", "--generation", "--handle-impossible-answer",
    "--header", "--hypothesis-template", "--ignore-labels", "--input-format", "--json-schema", "--keep", "--labels",
    "--labels-column", "--limit", "--logprobs", "--long", "--max-answer-len", "--max-batch-tokens",
    "--max-error-rate", "--max-length", "--max-memory", "--max-new-tokens", "--messages-column", "--min-p",
    "--mirror", "--multi-label", "--no-chat", "--no-compile", "--no-dedup", "--no-do-sample", "--no-header",
    "--no-normalize", "--normalize", "--num-beams", "--num-return-sequences", "--offload-folder", "--on-error",
    "--onnx-file", "--output", "--output-format", "--output-prefix", "--overwrite", "--pair-column", "--plan",
    "--pooling", "--precision", "--price-per-hour", "--progress", "--prompt-name", "--provider", "--quantization",
    "--quantization-options", "--quiet", "--ray", "--ray-workers", "--repetition-penalty", "--retry-errors",
    "--revision", "--scores", "--seed", "--seed-column", "--shard-rows", "--stop-strings", "--stride",
    "--system-prompt", "--targets", "--task", "--temperature", "--template", "--tensor-parallel", "--text-column",
    "--tokenizer", "--tokenizer-threads", "--tolerance", "--top-k", "--top-p", "--tune", "-o",
]  # fmt: skip

BENCH_FLAGS = [
    "--baseline", "--contenders", "--html", "--json", "--levels", "--max-length", "--model", "--repeat", "--revision",
    "--rows", "--slow-rows", "--task", "--text-column", "--time-limit",
]  # fmt: skip

EVAL_FLAGS = [
    "--adapter", "--attention", "--backend", "--batch-size", "--batching", "--combine", "--compile", "--delimiter",
    "--device-map", "--devices", "--exact", "--function-to-apply", "--handle-impossible-answer", "--header", "--html",
    "--input-format", "--json", "--label-column", "--limit", "--long", "--max-answer-len", "--max-batch-tokens",
    "--max-length", "--max-memory", "--no-compile", "--no-header", "--no-normalize", "--normalize", "--offload-folder",
    "--onnx-file", "--pair-column", "--pooling", "--precision", "--prompt-name", "--provider", "--qrels", "--queries",
    "--query-prompt-name", "--revision", "--shard-rows", "--stride", "--task", "--text-column", "--tokenizer",
    "--tokenizer-threads", "--tolerance", "--tune",
]  # fmt: skip

EXIT_CODES = {
    "PackhorseError": 1,
    "UsageError": 2,
    "RefusedError": 3,
    "ChangedError": 3,
    "HostileModelError": 3,
    "LockedError": 3,
    "InputError": 1,
    "OutputError": 1,
    "ModelError": 1,
    "RowFailedError": 1,
    "DamagedError": 1,
    "BatchRefusedError": 1,
    "DeviceOutOfMemoryError": 1,
    "TooManyErrorsError": 4,
    "WorkerDiedError": 1,
}

ERROR = pa.struct([("kind", pa.large_string()), ("message", pa.large_string())])
CLASSIFICATION = [("label", pa.large_string()), ("score", pa.float32()), ("error", ERROR)]
COLUMNS = {
    "classification": CLASSIFICATION,
    "classification, scores=all": [*CLASSIFICATION[:2], ("scores", pa.list_(pa.float32(), 2)), CLASSIFICATION[2]],
    "multi-label": [("label", pa.list_(pa.large_string())), *CLASSIFICATION[1:]],
    "regression": CLASSIFICATION,
    "embedding": [("embedding", pa.list_(pa.float32(), 32)), ("error", ERROR)],
    "embedding, float16": [("embedding", pa.list_(pa.float16(), 32)), ("error", ERROR)],
    "embedding, int8": [("embedding", pa.list_(pa.int8(), 32)), ("embedding_scale", pa.float32()), ("error", ERROR)],
    "embedding, binary": [("embedding", pa.list_(pa.int8(), 4)), ("error", ERROR)],
    "embedding, ubinary": [("embedding", pa.list_(pa.uint8(), 4)), ("error", ERROR)],
}
SETTINGS = {
    "classification, scores=all": {"scores": "all"},
    "embedding": {"task": "feature-extraction"},
    **{
        f"embedding, {kind}": {"task": "feature-extraction", "embedding_format": kind}
        for kind in ("float16", "int8", "binary", "ubinary")
    },
}
PROBLEM_TYPES = {"multi-label": "multi_label_classification", "regression": "regression"}


def test_public_names() -> None:
    assert sorted(packhorse.__all__) == NAMES
    assert all(getattr(packhorse, name).__name__ for name in NAMES)
    assert set(NAMES) <= set(dir(packhorse))
    with pytest.raises(AttributeError, match="nothing"):
        packhorse.nothing  # noqa: B018 - the look-up is the test


def test_public_names_stay_what_they_are_after_every_module_was_imported() -> None:
    """A module named like a public name would take its place in the package."""
    import importlib
    import pkgutil

    for module in pkgutil.iter_modules(packhorse.__path__):
        if module.name != "__main__":
            importlib.import_module(f"packhorse.{module.name}")
    assert all(callable(getattr(packhorse, name)) for name in NAMES)


def test_flags_of_run() -> None:
    assert _flags("run") == sorted(RUN_FLAGS)


def test_commands() -> None:
    assert sorted(_commands()) == ["bench", "doctor", "eval", "export", "plan", "run", "verify"]
    assert _flags("verify") == []
    assert _flags("bench") == BENCH_FLAGS
    assert _flags("eval") == EVAL_FLAGS
    assert _flags("doctor") == ["--devices", "--json", "--measure", "--precision", "--revision", "--task"]


def test_every_setting_has_its_flag_and_every_flag_its_setting() -> None:
    flags = {f.removeprefix("--").replace("-", "_") for f in RUN_FLAGS if not f.startswith("--no-") and f != "-o"}
    assert flags | {"model", "input"} == set(RunConfig.model_fields)
    assert set(EngineConfig.model_fields) < set(RunConfig.model_fields)


def test_every_setting_of_eval_is_one_of_run_and_has_its_flag() -> None:
    from packhorse.evaluating.opening import SETTINGS

    own = {"--html", "--json", "--label-column", "--qrels", "--queries", "--query-prompt-name"}
    flags = {f.removeprefix("--").replace("-", "_") for f in EVAL_FLAGS if not f.startswith("--no-") and f not in own}
    assert flags == set(SETTINGS) < set(RunConfig.model_fields)


@pytest.mark.parametrize("kind", COLUMNS)
def test_output_columns(tmp_path: Path, kind: str) -> None:
    folder = save_null_model(tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"problem_type": PROBLEM_TYPES.get(kind)}))
    with packhorse.load(folder, backend="null", **SETTINGS.get(kind, {})) as engine:
        schema = engine.predict(["a good film", None]).schema
        engine.run({"id": [1, 2], "text": ["a good film", None]}, str(tmp_path / "out"), output_prefix="p_")
    assert [(f.name, f.type) for f in schema] == COLUMNS[kind]
    written = pq.read_schema(tmp_path / "out" / "part-000000.parquet")
    prefixed = [(f"p_{name}", kind) for name, kind in COLUMNS[kind]]
    assert [(f.name, f.type) for f in written] == [("id", pa.int64()), ("text", pa.large_string()), *prefixed]


def test_exit_codes_of_the_exceptions() -> None:
    tree = [errors.PackhorseError, *_below(errors.PackhorseError)]
    assert {c.__name__: c.exit_code for c in tree if c is not errors.InterruptedRunError} == EXIT_CODES
    assert errors.InterruptedRunError(2, 0).exit_code == 130
    assert errors.InterruptedRunError(15, 0).exit_code == 143


def test_the_exception_tree_is_the_one_its_docstring_draws() -> None:
    for error in [errors.PackhorseError, *_below(errors.PackhorseError)]:
        assert error.__name__ in (errors.__doc__ or "")


@pytest.mark.parametrize(
    ("output", "files"),
    [
        (
            "out",
            [
                "out/_packhorse/lock", "out/_packhorse/manifest.json", "out/_packhorse/report.html",
                "out/_packhorse/report.json",
                "out/_packhorse/shards/000000.json", "out/_packhorse/shards/000001.json", "out/part-000000.parquet",
                "out/part-000001.parquet",
            ],
        ),
        (
            "x.parquet",
            [
                "x.parquet", "x.parquet.packhorse/_packhorse/lock", "x.parquet.packhorse/_packhorse/manifest.json",
                "x.parquet.packhorse/_packhorse/report.html", "x.parquet.packhorse/_packhorse/report.json",
                "x.parquet.packhorse/_packhorse/shards/000000.json",
                "x.parquet.packhorse/_packhorse/shards/000001.json",
            ],
        ),
        (
            "x.jsonl",
            [
                "x.jsonl", "x.jsonl.packhorse/_packhorse/lock", "x.jsonl.packhorse/_packhorse/manifest.json",
                "x.jsonl.packhorse/_packhorse/report.html", "x.jsonl.packhorse/_packhorse/report.json",
                "x.jsonl.packhorse/_packhorse/shards/000000.json",
                "x.jsonl.packhorse/_packhorse/shards/000001.json",
            ],
        ),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)  # fmt: skip
def test_files_of_a_finished_run(null_model: Path, tmp_path: Path, output: str, files: list[str]) -> None:
    packhorse.run(null_model, {"text": ["a", "b", "c"]}, tmp_path / output, backend="null", shard_rows=2)
    assert sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file()) == files


def test_fields_of_the_bookkeeping(null_model: Path, tmp_path: Path) -> None:
    packhorse.run(null_model, {"text": ["a", None]}, tmp_path, backend="null")
    state = tmp_path / "_packhorse"
    manifest, record = (json.loads((state / n).read_text()) for n in ("manifest.json", "shards/000000.json"))
    assert set(manifest) >= {"format", "settings", "input", "model", "plan", "budgets", "finished", "rows", "checksum"}
    assert set(record) == {
        "index", "first_row", "num_rows", "start", "end", "part", "bytes", "sha256", "counters", "error_rows",
        "checksum",
    }  # fmt: skip
    report = json.loads((state / "report.json").read_text())
    assert set(report) >= {
        "output", "status", "plan", "counters", "this_run", "wall_s", "setup_s", "rows", "rows_per_s", "tokens_per_s",
        "padding_efficiency", "device_busy_share", "shards", "parts", "peak_bytes", "lanes", "limiting_stage",
        "lengths", "samples", "throughput", "commits", "error_examples", "machine", "cost", "energy_j", "ceilings",
    }  # fmt: skip
    assert report["counters"]["errors"] == {"null_text": 1}


def _commands() -> dict[str, object]:
    import typer

    from packhorse.cli import app

    commands: dict[str, object] = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    return commands


def _flags(command: str) -> list[str]:
    params = _commands()[command].params  # type: ignore[attr-defined]
    return sorted(o for p in params for o in [*p.opts, *p.secondary_opts] if o.startswith("-") and o != "--help")


def _below(error: type[errors.PackhorseError]) -> list[type[errors.PackhorseError]]:
    return [c for child in error.__subclasses__() for c in [child, *_below(child)]]
