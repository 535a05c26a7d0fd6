"""From trials to one line per contender: medians over the rounds, ratios round by round or why none."""

from __future__ import annotations

from collections.abc import Callable
from statistics import median
from typing import Any

from packhorse.comparison.contract import Frozen, Measurement
from packhorse.comparison.discover import Contender
from packhorse.comparison.trials import Trial

PRODUCT, LOOP = "packhorse", "engine_loop"


class Summary(Frozen):
    """One contender over all rounds: medians, the largest peak memory, the worst difference."""

    contender: str
    precision: str
    description: str = ""
    num_rows: int | None = None
    rows_per_s: float | None = None
    tokens_per_s: float | None = None
    batch_s: float | None = None
    num_batches: int | None = None
    padding_efficiency: float | None = None
    peak_bytes: int | None = None
    load_s: float | None = None
    wall_s: float | None = None
    max_difference: float | None = None
    min_cosine: float | None = None
    num_compared: int | None = None
    ratio: float | None = None
    ratios: tuple[float, ...] = ()
    no_ratio_because: str = ""
    error: str = ""


class EndToEnd(Frozen):
    """packhorse's rows/s to those of its own backend as a bare loop, round by round; files, tokens and all to none."""

    contender: str
    loop: str
    ratio: float
    ratios: tuple[float, ...]


def end_to_end(trials: list[Trial]) -> list[EndToEnd]:
    """One line for every `packhorse` whose `engine_loop` of the same backend, attention and precision ran too."""
    by_label: dict[str, list[Trial]] = {}
    for trial in trials:
        by_label.setdefault(trial.contender.label, []).append(trial)
    lines = []
    for label, own in by_label.items():
        loop = label.replace(PRODUCT, LOOP, 1)
        if own[0].contender.name != PRODUCT or loop not in by_label:
            continue
        if ratios := _ratios(own, by_label[loop]):
            lines.append(EndToEnd(contender=label, loop=loop, ratio=median(ratios), ratios=ratios))
    return lines


def summarize(trials: list[Trial], baseline: str) -> list[Summary]:
    """One summary per contender, in the order they first ran; ratios of rows/s to `baseline`."""
    by_label: dict[str, list[Trial]] = {}
    for trial in trials:
        by_label.setdefault(trial.contender.label, []).append(trial)
    return [_summarize_one(own, by_label.get(baseline, []), baseline) for own in by_label.values()]


def _summarize_one(trials: list[Trial], baseline_trials: list[Trial], baseline: str) -> Summary:
    contender = trials[0].contender
    error = _first_error(trials)
    if error:
        return Summary(**_names(contender), error=error)
    no_ratio_because = _no_ratio_because(trials, baseline_trials, baseline)
    ratios = () if no_ratio_because else _ratios(trials, baseline_trials)
    return Summary(
        **_medians(contender, [trial.measurement for trial in trials if trial.measurement]),
        **_worst_parity(trials),
        ratio=median(ratios) if ratios else None,
        ratios=ratios,
        no_ratio_because=no_ratio_because,
    )


def _medians(contender: Contender, measurements: list[Measurement]) -> dict[str, Any]:
    def middle(read: Callable[[Measurement], float]) -> float:
        return median(read(measurement) for measurement in measurements)

    first = measurements[0]
    return _names(contender, first.precision) | {
        "num_rows": first.num_rows,
        "rows_per_s": middle(lambda measurement: measurement.rows_per_s),
        "tokens_per_s": middle(lambda measurement: measurement.tokens_per_s),
        "batch_s": middle(lambda measurement: measurement.batch_s or 0.0) or None,
        "num_batches": first.num_batches,
        "padding_efficiency": first.padding_efficiency,
        "peak_bytes": max(measurement.peak_bytes for measurement in measurements),
        "load_s": middle(lambda measurement: measurement.load_s),
        "wall_s": middle(lambda measurement: measurement.wall_s),
    }


def _names(contender: Contender, came_to: str | None = None) -> dict[str, str]:
    """`came_to`: the precision that `auto` chose."""
    left_open = contender.precision == "auto" and came_to
    precision = f"auto: {came_to}" if left_open else contender.precision
    return {"contender": contender.variant, "precision": precision, "description": contender.description}


def _worst_parity(trials: list[Trial]) -> dict[str, Any]:
    found = [trial.parity for trial in trials if trial.parity]
    differences = [parity.max_difference for parity in found if parity.max_difference is not None]
    cosines = [parity.min_cosine for parity in found if parity.min_cosine is not None]
    return {
        "max_difference": max(differences) if differences else None,
        "min_cosine": min(cosines) if cosines else None,
        "num_compared": found[0].num_rows,
    }


def _no_ratio_because(trials: list[Trial], baseline_trials: list[Trial], baseline: str) -> str:
    if own := _first_mismatch(trials):
        return own
    if not baseline_trials:
        return f"{baseline} did not run"
    if _first_error(baseline_trials):
        return f"{baseline} failed"
    if other := _first_mismatch(baseline_trials):
        return f"{baseline}: {other}"
    return ""


def _first_mismatch(trials: list[Trial]) -> str:
    return next((trial.parity.reason for trial in trials if trial.parity and not trial.parity.matches), "")


def _first_error(trials: list[Trial]) -> str:
    return next((trial.error for trial in trials if trial.error), "")


def _ratios(trials: list[Trial], baseline_trials: list[Trial]) -> tuple[float, ...]:
    """Pair by pair: what the machine does in a minute hits both of a round."""
    return tuple(
        own.measurement.rows_per_s / other.measurement.rows_per_s
        for own, other in zip(trials, baseline_trials, strict=True)
        if own.measurement and other.measurement
    )
