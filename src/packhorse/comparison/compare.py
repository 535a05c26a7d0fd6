"""The whole comparison: rows and models in, a Comparison out."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from packhorse.comparison.contract import SEED, Frozen, ModelSpec
from packhorse.comparison.discover import Contender, parse_contender, parse_contenders
from packhorse.comparison.levers import Levels, contenders_of
from packhorse.comparison.machine import Machine, busy_share, read_machine, read_versions
from packhorse.comparison.model_lines import ModelLine, compare_models
from packhorse.comparison.parity import Tolerances
from packhorse.comparison.rows import Workload, sample_input, save_json, synthetic_texts, vocabulary_words
from packhorse.comparison.subject import find_subject
from packhorse.comparison.summary import Summary, summarize
from packhorse.comparison.sweeps import Point, sweep_batch_sizes, sweep_max_lengths
from packhorse.comparison.trials import Bench, RowFiles, Trial, compute_reference, write_row_files
from packhorse.config import validated
from packhorse.errors import UsageError

Say = Callable[[str], None]
DEFAULT_BASELINE = "pipeline_32"
BUSY = 0.2  # share of the cores that other processes may take without a note


class BenchConfig(BaseModel):
    """What is compared, on what, and within which bounds."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    contenders: str | None = None
    """Labels by comma; None: those of the levels, or none where several models are compared."""
    levels: Levels = "quick"
    """quick: no torch.compile, no sweeps; full: everything."""
    baseline: str | None = None
    """The contender that ratios refer to; None: pipeline_32, or else the first."""
    rows: int = Field(500, ge=1)
    """Rows drawn from the input."""
    slow_rows: int = Field(64, ge=1)
    """Rows that a slow contender is timed on."""
    reference_rows: int = Field(128, ge=1)
    """Rows held against plain transformers, one by one in fp32."""
    repeat: int = Field(1, ge=1)
    """Rounds; each runs every contender once."""
    time_limit: float = Field(120, gt=0)
    """Seconds that a contender may take in a round, set-up included."""
    text_column: str | None = None
    """Column with the text; guessed when only one can be meant."""
    task: Literal["auto", "text-classification", "feature-extraction"] = "auto"
    """What to compute; auto reads it from the model."""
    max_length: int | None = Field(None, ge=1)
    """Longest row in tokens, for every contender. Default: the model's."""
    revision: str | None = None
    """Branch, tag or commit on the hub, of the first model."""


class Comparison(Frozen):
    """What was measured: one line a contender, each trial, sweeps by name, one line a model."""

    machine: Machine
    versions: dict[str, str]
    settings: dict[str, Any]
    contenders: list[Summary]
    trials: list[dict[str, Any]]
    sweeps: dict[str, list[Point]]
    models: list[ModelLine]
    notes: list[str]

    def to_dict(self) -> dict[str, Any]:
        """Everything, as JSON values."""
        return self.model_dump(mode="json")

    def save_json(self, file: str | Path) -> None:
        """Write everything."""
        save_json(Path(file), self.to_dict())

    def save_html(self, file: str | Path) -> None:
        """Write one page with tables and plots that needs no other file."""
        from packhorse.comparison.page import render

        target = Path(file)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(render(self.to_dict()), encoding="utf-8")


def bench(models: Sequence[str | Path], input: Any = None, say: Say = lambda line: None, **settings: Any) -> Comparison:
    """See packhorse.bench(). say: told about each step as it ends."""
    config: BenchConfig = validated(BenchConfig, settings)  # type: ignore[type-var,arg-type]
    subjects = find_subjects(models, config)
    contenders = choose_contenders(config, subjects)
    baseline = choose_baseline(config, contenders, subjects[0])
    workload = find_rows(input, config, subjects[0])
    say(_rows_line(workload))
    busy_before = busy_share()
    with tempfile.TemporaryDirectory(prefix="packhorse-bench-") as folder:
        has_slow = any(contender.is_slow for contender in contenders)
        files = write_row_files(Path(folder), workload.texts, config.slow_rows, config.reference_rows, has_slow)
        several = len(subjects) > 1
        lines = compare_models(subjects, files.all_rows, Path(folder), config.time_limit, say) if several else []
        trials, sweeps = run_contenders(config, subjects[0], files, Path(folder), contenders, say)
    return Comparison(
        machine=read_machine(),
        versions=read_versions(),
        settings=_told(config, subjects, workload, baseline),
        contenders=summarize(trials, baseline),
        trials=[trial.told() for trial in trials],
        sweeps=sweeps,
        models=lines,
        notes=_notes(workload, trials, busy_before),
    )


def check_target(flag: str, file: Path) -> None:
    """Before minutes are spent. Raises UsageError where `file` cannot be written; its folder is made."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"{flag} {file}: cannot be written ({error.strerror}); choose another place") from error
    if file.is_dir() or not os.access(file if file.exists() else file.parent, os.W_OK):
        raise UsageError(f"{flag} {file}: cannot be written; choose another place")


def find_subjects(models: Sequence[str | Path], config: BenchConfig) -> list[ModelSpec]:
    """The models, checked. Raises UsageError where they do not do the same."""
    if not models:
        raise UsageError("bench needs a model: a folder, or an id on the hub")
    revisions = [config.revision, *[None] * (len(models) - 1)]
    pairs = zip(models, revisions, strict=True)
    found = [find_subject(name, config.task, config.max_length, revision) for name, revision in pairs]
    for model in found[1:]:
        if model.task != found[0].task:
            raise UsageError(f"--model {model.name}: does {model.task}, and {found[0].name} does {found[0].task}")
    return found


def choose_contenders(config: BenchConfig, models: list[ModelSpec]) -> list[Contender]:
    """Those named; else those of the levels, or none where models are compared."""
    if config.contenders is not None:
        return parse_contenders(config.contenders, models[0].task)
    return contenders_of(config.levels, models[0].task) if len(models) == 1 else []


def choose_baseline(config: BenchConfig, contenders: list[Contender], model: ModelSpec) -> str:
    """Its label. Raises UsageError where it is not among the contenders."""
    labels = [contender.label for contender in contenders]
    if config.baseline is None:
        return DEFAULT_BASELINE if DEFAULT_BASELINE in labels or not labels else labels[0]
    label = parse_contender(config.baseline, model.task).label
    if label not in labels:
        raise UsageError(f"--baseline {label}: not among the contenders {', '.join(labels)}; add it to --contenders")
    return label


def find_rows(input: Any, config: BenchConfig, model: ModelSpec) -> Workload:
    """Drawn from the input, or made of the model's own words."""
    if input is not None:
        return sample_input(input, config.text_column, config.rows)
    if config.text_column is not None:
        raise UsageError(f"--text-column {config.text_column}: belongs to an INPUT, and none was given")
    texts = synthetic_texts(vocabulary_words(model.transformer), config.rows)
    return Workload(texts, "synthetic", len(texts), 0)


def run_contenders(
    config: BenchConfig, model: ModelSpec, files: RowFiles, work_dir: Path, contenders: list[Contender], say: Say
) -> tuple[list[Trial], dict[str, list[Point]]]:
    """The reference, every contender in turn, round by round (A B A B), then the sweeps."""
    if not contenders:
        return [], {}
    reference, cost = compute_reference(model, files, work_dir)
    say(f"reference: {cost.num_rows} rows one by one on {cost.details['device']} in {cost.run_s:.1f} s")
    one = Bench(model, files, reference, Tolerances(), work_dir, config.time_limit)
    trials = run_rounds(one, contenders, config.repeat, say)
    if config.levels == "quick":
        return trials, {}
    sweeps = {"batch_size": partial(sweep_batch_sizes, one, say), "max_length": partial(sweep_max_lengths, one, say)}
    return trials, {name: list(sweep()) for name, sweep in sweeps.items()}


def run_rounds(one: Bench, contenders: list[Contender], repeat: int, say: Say) -> list[Trial]:
    """Every contender once in each round."""
    trials = []
    for number in range(1, repeat + 1):
        for contender in contenders:
            trials.append(one.run(contender, number))
            say(trials[-1].line(repeat))
    return trials


def _rows_line(workload: Workload) -> str:
    rows = f"{len(workload.texts):,} rows"
    if workload.source == "synthetic":
        return f"rows: {rows} of random words of the model's vocabulary, as no INPUT was given; lengths as of comments"
    return f"rows: {rows} of {workload.seen_rows:,} of {workload.source}"


def _notes(workload: Workload, trials: list[Trial], busy_before: float) -> list[str]:
    """What the reader has to know besides the numbers."""
    notes = []
    if workload.source == "synthetic":
        notes.append("The rows are synthetic: give INPUT for figures of your own rows.")
    if workload.left_out_rows:
        notes.append(f"{workload.left_out_rows:,} rows of the input have no text and were left out.")
    if busy_before > BUSY:
        notes.append(
            f"Other processes took {busy_before:.0%} of the cores when this began: figures of a busy machine can be "
            "several times off. Run it again on an idle one."
        )
    plans = {trial.contender.label: trial.plan_notes for trial in trials if trial.contender.precision == "auto"}
    return [*notes, *(f"{label}: {note}" for label, found in plans.items() for note in found)]


def _told(config: BenchConfig, models: list[ModelSpec], workload: Workload, baseline: str) -> dict[str, Any]:
    """What was asked for, without folders: they say nothing on another machine."""
    return config.model_dump() | {
        "baseline": baseline,
        "source": workload.source,
        "seed": SEED,
        "rows": len(workload.texts),
        "input_rows": workload.seen_rows,
        "left_out_rows": workload.left_out_rows,
        "characters": sum(map(len, workload.texts)),
        "models": [model.told() for model in models],
    }
