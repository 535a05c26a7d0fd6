"""A run in words and figures, for a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from packhorse.metrics import LiveCounters, RunReport
from packhorse.plans import Plan

PREVIEW_CHARS = 60


def plan_line(plan: Plan, model: str) -> str:
    """One line: what runs, where, how."""
    batches = (
        f"{plan.batch_size} rows a batch" if plan.batching == "fixed" else f"{plan.max_batch_tokens:,} tokens a batch"
    )
    longest = f"up to {plan.max_length:,} tokens a row" if plan.max_length else "no maximum length"
    if plan.engine is not None:
        batches = f"{plan.batch_size} rows at once, up to {plan.max_new_tokens:,} new tokens each"
        how = f"{plan.precision}, {plan.backend} {plan.engine}"
        return f"{plan.task} with {model} on {plan.device} ({how}): {batches}, {longest} in all"
    return f"{plan.task} with {model} on {plan.device} ({plan.precision}, {plan.backend}): {batches}, {longest}"


def forecast_line(plan: Plan) -> str | None:
    """What the run is expected to take, and how that is known; None where nothing was measured or remembered."""
    forecast = plan.forecast
    if forecast is None or forecast.total_s is None or not forecast.tokens_per_s:
        return None
    known = {
        "measured": f"measured in {duration(forecast.tuned_s)}", "cached": "measured by an earlier run",
    }.get(forecast.source, "predicted")  # fmt: skip
    return f"expected: {duration(forecast.total_s)} at {forecast.tokens_per_s:,.0f} tokens/s, {known}"


def shortened(text: str | None) -> str:
    """A text on one line."""
    return "null" if text is None else _short(text)


def preview_lines(texts: Sequence[str | None], predictions: pa.Table) -> list[str]:
    """The first predictions, a line each."""
    lines = []
    for text, row in zip(texts, predictions.to_pylist(), strict=True):
        shown = ", ".join(f"{name}={_short(value)}" for name, value in row.items() if value is not None)
        lines.append(f"  {_short(text)!s:<{PREVIEW_CHARS + 2}}  {shown}")
    return lines


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4f}"
    if isinstance(value, list) and len(value) > 4:
        return "[" + ", ".join(_short(v) for v in value[:3]) + f", ... {len(value)} values]"
    if isinstance(value, list):
        return "[" + ", ".join(_short(v) for v in value) + "]"
    if isinstance(value, dict) and value.keys() == {"kind", "message"}:  # an error
        return f"{value['kind']}: {value['message']}"
    if isinstance(value, dict):
        return "(" + ", ".join(f"{name}={_short(v)}" for name, v in value.items()) + ")"
    text = " ".join(str(value).split())
    return (
        repr(text if len(text) <= PREVIEW_CHARS else text[: PREVIEW_CHARS - 3] + "...")
        if isinstance(value, str)
        else text
    )


def progress_line(live: LiveCounters) -> str:
    """Rows, rows/s, tokens/s, time left, padding efficiency."""
    done = live.done_before + live.rows
    total = f" of {'~' if live.total_rows % 1 else ''}{live.total_rows:,.0f}" if live.total_rows is not None else ""
    eta = f", {duration(live.eta_s)} left" if live.eta_s is not None else ""
    rates = f"{live.rows / live.elapsed_s:,.0f} rows/s, {live.real_tokens / live.elapsed_s:,.0f} tokens/s"
    return f"{done:,}{total} rows, {rates}{eta}, padding efficiency {live.padding_efficiency:.0%}"


def summary_lines(report: RunReport) -> list[str]:
    """The end of a run: what was done, what it cost, how close to the limit it came."""
    c, here = report.counters, report.this_run
    kinds = ", ".join(f"{n:,} {kind}" for kind, n in sorted(c.errors.items()))
    lines = [
        (
            "output",
            f"{report.output}  ({report.rows:,} rows in {report.shards} shard{'s' * (report.shards != 1)})",
        ),
        ("errors", f"{c.error_rows:,} rows" + (f": {kinds}" if kinds else "")),
        ("truncated", f"{c.truncated_rows:,} rows cut, {c.truncated_tokens:,} tokens lost"),
        ("duplicates", f"{c.duplicate_rows:,} rows collapsed"),
        *(("note", note) for note in sorted(c.notes)),
    ]
    if here.rows:
        resumed = f" ({report.rows - here.rows:,} rows were done before)" if report.rows != here.rows else ""
        lines += [
            ("speed", f"{report.rows_per_s:,.1f} rows/s, {report.tokens_per_s:,.0f} real tokens/s{resumed}"),
            ("time", f"{duration(report.wall_s)} and {duration(report.setup_s)} of set-up; {_lanes(report)}"),
            *_written(report),
            *(
                []
                if here.generated_tokens
                else [("padding", f"{report.padding_efficiency:.1%} of computed tokens are real")]
            ),
            ("device", _device(report)),
            ("transfers", _transfers(report)),
            ("memory", f"{size(report.peak_bytes)} peak" + _device_memory(report)),
        ]
    if report.html_path:
        lines.append(("report", report.html_path))
    return [f"  {name:<11} {text}" for name, text in lines]


def _written(report: RunReport) -> list[tuple[str, str]]:
    """Of generation: what was written, and how much of it hung by a thread."""
    done = report.this_run
    if not done.generated_tokens:
        return []
    rate = f"{done.generated_tokens:,} tokens, {report.generated_tokens_per_s:,.1f} a second"
    lines = [("generated", rate)]
    if report.counters.near_ties:
        ties = f"{report.counters.near_ties:,} steps whose best two tokens are too close to tell apart for sure"
        lines.append(("near ties", f"{ties}: other batches could choose otherwise there"))
    return lines


def _lanes(report: RunReport) -> str:
    """Where the device's lane was when it did not compute."""
    waited = f"waited {duration(report.wait_input_s)} for input, {duration(report.wait_output_s)} for output"
    return f"{waited}: " + ("hardly idle" if report.idle_cause == "none" else f"mostly for {report.idle_cause}")


def _device(report: RunReport) -> str:
    busy = f"computed {report.device_busy_share:.1%} of the time"
    if not report.this_run.flops:
        return busy
    useful = f"{report.flops_per_s / 1e9:,.1f} useful GFLOP/s"
    if report.gemm_share is None or report.gemm_flops_per_s is None:
        return f"{busy}, {useful}"
    best = f"{report.gemm_share:.0%} of the best matrix product here ({report.gemm_flops_per_s / 1e9:,.0f})"
    return f"{busy}, {useful} = {best}"


def _transfers(report: RunReport) -> str:
    """Copies between the host's memory and the device's."""
    c = report.this_run
    if report.pinned_share is None:
        return report.transfers_reason
    pinned = {0.0: "", 1.0: ", pinned"}.get(report.pinned_share, f", {report.pinned_share:.0%} of all bytes pinned")
    copies_in = f"{c.host_to_device_count:,} copies in ({copied(c.host_to_device_bytes)}{pinned})"
    copies_out = f"{c.device_to_host_count:,} out ({copied(c.device_to_host_bytes)})"
    return f"{copies_in}, {copies_out}, {c.transfer_s:.2f} s of the device's time"


def copied(num_bytes: int) -> str:
    """12.3 MB, 512 B: decimal, as rates of copying are told."""
    powers = (("GB", 10**9), ("MB", 10**6), ("kB", 10**3))
    return next((f"{num_bytes / one:,.1f} {unit}" for unit, one in powers if num_bytes >= one), f"{num_bytes} B")


def _device_memory(report: RunReport) -> str:
    return f", {size(report.device_peak_bytes)} on the device" if report.device_peak_bytes else ""


def size(count: int) -> str:
    """12 MiB, 3.21 GiB."""
    return f"{count / 2**30:.2f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"


def duration(seconds: float) -> str:
    """12.3 s, 4 min 05 s, 2 h 07 min."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes = round(seconds) // 60
    if minutes < 60:
        return f"{minutes} min {round(seconds) % 60:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"
