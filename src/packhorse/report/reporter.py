"""Where the words go: a line that moves in a terminal, plain lines elsewhere, JSON lines, or nowhere."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import pyarrow as pa

from packhorse.metrics import LiveCounters, RunReport
from packhorse.plans import Plan
from packhorse.report.text import forecast_line, plan_line, preview_lines, progress_line, shortened, summary_lines

PLAIN_EVERY_S = 10.0
JSON_EVERY_S = 1.0
LIVE_PER_S = 8

Mode = Literal["auto", "plain", "json", "none"]


class Reporter:
    """Progress goes to stderr, the summary to stdout; with json all of it to stderr, one object a line."""

    def __init__(self, mode: Mode) -> None:
        self._mode = ("live" if sys.stderr.isatty() else "plain") if mode == "auto" else mode

    def note(self, text: str) -> None:
        if self._mode == "json":
            self._json("note", text=text)
        elif self._mode != "none":
            _print(text)

    def plan(self, plan: Plan, model: str) -> None:
        if self._mode == "json":
            self._json("plan", **plan.model_dump(mode="json"))
            return
        self.note(plan_line(plan, model))
        for text in (*plan.notes, forecast_line(plan)):
            if text is not None:
                self.note(f"  {text}")

    def preview(self, texts: Sequence[str | None], predictions: pa.Table) -> None:
        lines = preview_lines(texts, predictions)
        if self._mode == "json":
            self._json("preview", rows=lines)
        else:
            self.note("\n".join(["first predictions:", *lines]))

    def prompts(self, texts: Sequence[str | None]) -> None:
        """The first prompts, as the model gets them."""
        lines = [shortened(text) for text in texts]
        if self._mode == "json":
            self._json("prompts", texts=lines)
        else:
            self.note("\n".join(["first prompts:", *(f"  {line}" for line in lines)]))

    @contextmanager
    def progress(self, live: LiveCounters) -> Iterator[None]:
        """Shows the counters while the block runs."""
        if self._mode == "live":
            from rich.console import Console
            from rich.live import Live
            from rich.text import Text

            line = Live(
                get_renderable=lambda: Text(progress_line(live), no_wrap=True, overflow="ellipsis"),
                console=Console(stderr=True), refresh_per_second=LIVE_PER_S, transient=True,
            )  # fmt: skip
            with line:
                yield
            return
        ended = threading.Event()
        thread = threading.Thread(target=self._tick, args=(live, ended), daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()

    def summary(self, report: RunReport) -> None:
        if self._mode == "json":
            self._json("finished", **report.to_dict())
        elif self._mode != "none":
            sys.stdout.write(
                "\n".join(
                    [
                        "finished" if report.status == "finished" else "already finished",
                        *summary_lines(report),
                    ]
                )
                + "\n"
            )
            sys.stdout.flush()

    def _tick(self, live: LiveCounters, ended: threading.Event) -> None:
        while not ended.wait(JSON_EVERY_S if self._mode == "json" else PLAIN_EVERY_S):
            if self._mode == "json":
                self._json("progress", **_progress(live))
            else:
                self.note(progress_line(live))

    def _json(self, event: str, **values: Any) -> None:
        _print(json.dumps({"event": event} | values))


def _progress(live: LiveCounters) -> dict[str, Any]:
    return {
        "rows": live.done_before + live.rows,
        "total_rows": live.total_rows,
        "rows_per_s": live.rows / live.elapsed_s,
        "tokens_per_s": live.real_tokens / live.elapsed_s,
        "eta_s": live.eta_s,
        "padding_efficiency": live.padding_efficiency,
    }


def _print(text: str) -> None:
    sys.stderr.write(text + "\n")
    sys.stderr.flush()
