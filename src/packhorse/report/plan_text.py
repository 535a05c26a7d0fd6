"""An explanation for a terminal: a histogram, the ways, the batches, what it will take."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from packhorse.explanation import Explanation
from packhorse.plans import Alternative
from packhorse.report.text import duration, size

BAR = 40  # columns of the longest bar
EIGHTHS = " ▏▎▍▌▋▊▉"


def print_explanation(explanation: Explanation, console: Console) -> None:
    console.print(Group(*_parts(explanation)), soft_wrap=False)


def _parts(e: Explanation) -> Iterator[RenderableType]:
    yield Text(f"{e.input} through {e.model}", style="bold")
    yield Text(
        f"about {e.forecast.rows:,.0f} rows, {e.forecast.tokens:,.0f} tokens; {e.forecast.sample_rows:,} rows were "
        f"looked at, in {duration(e.seconds)}; nothing was run"
    )
    yield Text(f"\ntokens a {_counted(e)}", style="bold")
    yield from _histogram(e.lengths)
    if e.truncated_rows:
        yield Text(f"{e.truncated_rows} of {e.forecast.sample_rows} rows are longer than the model and will be cut")
    if e.rows_at_once is not None:
        yield from _writing(e)
        return
    yield Text("\nways", style="bold")
    yield _ways(e.alternatives)
    yield from (Text(f"  {way(a, e.alternatives)}: {a.reason}") for a in e.alternatives if a.reason)
    of_each = "" if _counted(e) == "row" else f", {e.sequences_per_row:,.1f} sequences each"
    yield Text(f"\nbatches ({e.batching}), of a shard of {e.planned_rows:,} rows{of_each}", style="bold")
    yield _batches(e)
    yield Text("\nwhat it takes", style="bold")
    yield from (Text(f"  {name:<10} {text}") for name, text in _takes(e))


def _counted(e: Explanation) -> str:
    """What has a length, and is batched: a row, or one of its windows, labels or masked tokens."""
    return "sequence" if e.sequences_per_row > 1 else "row"


def _writing(e: Explanation) -> Iterator[RenderableType]:
    """Of generation."""
    yield Text(f"\n{e.task}: {e.rows_at_once:,} rows at once, up to {e.max_new_tokens:,} new tokens each", style="bold")
    for a in e.alternatives:
        yield Text(("> " if a.status == "chosen" else "  ") + _writer(a))
    yield Text("\nwhat it takes", style="bold")
    if e.memory is not None:
        yield from (Text(f"  {name:<10} {text}") for name, text in _memory(e.memory))
    yield from (Text(f"  {line}", style="bold" if i == 0 else "") for i, line in enumerate(e.advice))
    if e.forecast.total_s is not None:
        yield Text(f"  {'time':<10} up to {duration(e.forecast.total_s)}, if every output became as long as it may")
    if e.cost is not None:
        yield Text(f"  {'cost':<10} up to {e.cost:,.2f} at {e.price_per_hour:,.2f} an hour")


def _writer(a: Alternative) -> str:
    """An engine, by a trial of prompts and outputs, or a number of rows, by steps with all of them."""
    if a.engine is None:
        return f"{a.rows_at_once or 0:>5,} rows at once: {rate(a)} tokens/s"
    outcome = "" if a.status == "chosen" else f"{a.status.replace('_', ' ')}: {a.reason}"
    figure = f"{rate(a)} tokens/s" if a.measured_tokens_per_s is not None else ""
    return f"{a.engine}: {', '.join(filter(None, (figure, outcome))) or 'taken without a trial'}"


def _memory(memory: dict[str, Any]) -> Iterator[tuple[str, str]]:
    yield "weights", f"{size(memory['weights_bytes'])} in {memory['precision']}"
    yield "KV cache", f"{size(memory['kv_cache_bytes'])} of {memory['max_rows']:,} rows at their longest"
    yield "activations", size(memory["activation_bytes"])
    free = ", ".join(f"{size(count)} free on {device}" for device, count in memory["free_bytes"].items())
    each = f", each of {memory['ranks']} ranks" if "ranks" in memory else ""
    yield "in all", f"{size(memory['total_bytes'])}{each}; {free}"


def _histogram(lengths: dict[str, int]) -> Iterator[Text]:
    most = max(lengths.values(), default=1)
    total = max(sum(lengths.values()), 1)
    for bucket, rows in lengths.items():
        yield Text(f"  {bucket:>11} {bar(rows / most):<{BAR}} {rows / total:6.1%}")


def bar(share: float, width: int = BAR) -> str:
    """A bar of that share of the width, in eighths of a character."""
    full, part = divmod(round(share * width * 8), 8)
    return "█" * full + (EIGHTHS[part] if part else "")


def _ways(alternatives: tuple[Alternative, ...]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for name, justify in (
        ("  way", "left"), ("tokens/s", "right"), ("set-up", "right"), ("total", "right"), ("vs fp32", "right"),
        ("", "left"),
    ):  # fmt: skip
        table.add_column(name, justify=justify, no_wrap=True)  # type: ignore[arg-type]
    for a in alternatives:
        table.add_row(
            ("> " if a.status == "chosen" else "  ") + way(a, alternatives),
            rate(a),
            duration(a.setup_s) if a.setup_s else "-",
            duration(a.total_s) if a.total_s is not None else "-",
            difference(a),
            a.status.replace("_", " "),
        )
    return table


def way(alternative: Alternative, among: tuple[Alternative, ...]) -> str:
    """Its name, with the numbers that tell it from others of that name."""
    others = [a for a in among if a.name == alternative.name]
    name = alternative.name
    if len({a.max_batch_tokens for a in others}) > 1:
        name += f", {alternative.max_batch_tokens:,} tokens"
    if len({(a.workers, a.threads) for a in others}) > 1:
        name += f", {alternative.workers} x {alternative.threads} threads"
    if alternative.tokenizer_threads is not None:
        name += f", {alternative.tokenizer_threads} for the tokenizer"
    return name


def rate(alternative: Alternative) -> str:
    """Measured; predicted with a ~."""
    if alternative.measured_tokens_per_s is not None:
        return f"{alternative.measured_tokens_per_s:,.0f}"
    predicted = alternative.predicted_tokens_per_s
    return "-" if predicted is None else f"~{predicted:,.0f}"


def difference(alternative: Alternative) -> str:
    """What 99% of the compared rows differ from fp32 by at most."""
    p99 = (alternative.accuracy or {}).get("p99_difference")
    return "-" if p99 is None else f"{p99:.2g}"


def _batches(e: Explanation) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for name in ("  batch", f"{_counted(e)}s", "lengths", "tokens", "padding efficiency"):
        table.add_column(name, justify="right")
    for b in e.batches:
        lengths = f"{b.shortest}" if b.shortest == b.longest else f"{b.shortest}-{b.longest}"
        share = b.real_tokens / max(b.computed_tokens, 1)
        table.add_row(
            f"{b.number + 1} of {e.num_batches}", f"{b.rows:,}", lengths, f"{b.real_tokens:,}", f"{share:.1%}"
        )
    return table


def _takes(e: Explanation) -> Iterator[tuple[str, str]]:
    f = e.forecast
    if f.total_s is not None and f.tokens_per_s:
        how = {"measured": "measured", "cached": "measured by an earlier run"}.get(f.source, "predicted")
        yield "time", f"{duration(f.total_s)} at {f.tokens_per_s:,.0f} tokens/s, {how}"
    else:
        yield "time", "not known before it runs; --tune quick measures"
    if e.weight_bytes is not None and e.batch_bytes is not None:
        yield (
            "memory",
            f"{size(e.weight_bytes)} of weights, {size(e.batch_bytes)} of activations for each batch at a time",
        )
    yield "padding", f"{e.padding_efficiency:.1%} of computed tokens are real"
    if e.cost is not None:
        yield "cost", f"{e.cost:,.2f} at {e.price_per_hour:,.2f} an hour"
