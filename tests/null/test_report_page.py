"""Pages of reports that no null run gives: hostile names, ceilings, alternatives, what is not known."""

from __future__ import annotations

import dataclasses
import json
import re
from typing import Any

import pytest

from packhorse.counters import Counters
from packhorse.metrics import RunReport
from packhorse.plans import Alternative, Forecast, Plan
from packhorse.report.html import render
from tests.null.report_page import Page, check_figures

HOSTILE = "<script>alert('1')</script>/\"~{{ 7 * 7 }}&amp;"


def _alternative(i: int, backend: str, precision: str, status: Any, rate: float | None) -> Alternative:
    return Alternative(
        backend=backend, precision=precision, max_batch_tokens=2_048, workers=2, threads=1, setup_s=i * 1.7,
        predicted_tokens_per_s=17_000.0 if status == "not_tried" else None, measured_tokens_per_s=rate,
        total_s=i * 100.0, accuracy={"p99_difference": 0.0081, "changed_labels": i}, status=status, reason=HOSTILE,
        compiled=i == 1, tokenizer_threads=1 if i == 1 else None,
    )  # fmt: skip


def fabricated(**fields: Any) -> RunReport:
    """A padded int8 run of 1,000 rows, with everything a report can have."""
    ways = [
        ("openvino", "int8", "chosen", 58_210.4), ("torch", "bf16", "beaten", 36_120.0),
        ("torch", "int8", "inaccurate", 52_000.0), ("onnx", "fp32", "not_tried", None),
        ("torch", "fp32", "beaten", 19_800.0), ("openvino", "bf16", "failed", None),
    ]  # fmt: skip
    alternatives = tuple(_alternative(i, *way) for i, way in enumerate(ways))
    plan = Plan(
        task="text-classification", backend="openvino", device="cpu", precision="int8", attention="sdpa",
        batching="padded", batch_size=None, max_batch_tokens=2_048, max_length=512, workers=2, threads=1,
        tokenizer="hf", text_column=HOSTILE, pair_column="other", accuracy={"finding": HOSTILE}, notes=(HOSTILE,),
        versions={"torch": "2.13.0"}, alternatives=alternatives,
        forecast=Forecast(rows=1_000, tokens=30_000, sample_rows=512, tokens_per_s=900.0, total_s=33.0, tuned_s=2.0),
    )  # fmt: skip
    counters = Counters(
        rows=1_000, errors={HOSTILE: 3}, notes={HOSTILE: 2}, real_tokens=30_000, row_tokens=31_000,
        computed_tokens=33_000, batches=20, flops=9e12, read_s=1.0, tokenize_s=4.0, compute_s=20.0, finish_s=0.2,
        write_s=0.4, length_rows={"9-12": 500, "33-48": 497}, length_tokens={"9-12": 5_000, "33-48": 25_000},
        length_computed={"9-12": 6_000, "33-48": 27_000},
    )  # fmt: skip
    samples = [
        {"elapsed_s": 1.0 * i, "rows": 33 * i, "real_tokens": 1_000 * i + i * i, "computed_tokens": 1_100 * i + i * i}
        for i in range(1, 30)
    ]
    values: dict[str, Any] = {
        "output": HOSTILE, "model": HOSTILE, "input": HOSTILE, "status": "finished",
        "plan": plan.model_dump(mode="json"), "counters": counters, "this_run": counters, "wall_s": 30.0,
        "setup_s": 5.0, "wait_input_s": 6.0, "wait_output_s": 1.0, "peak_bytes": 2**31, "device_peak_bytes": 2**30,
        "gemm_flops_per_s": 2.1e12, "shards": 2, "samples": samples,
        "commits": [{"elapsed_s": 15.0, "rows": 500}, {"elapsed_s": 30.0, "rows": 1_000}], "sha256": "ab12" * 16,
        "error_examples": {HOSTILE: [{"row": 7, "message": HOSTILE}]}, "price_per_hour": 0.86, "energy_j": 8_123.0,
        "energy_sources": {HOSTILE: 8_123.0}, "energy_reason": HOSTILE,
        "machine": {"cpu": HOSTILE, "cores": 2, "physical_cores": 1, "memory_bytes": 2**34, "system": "Linux",
                    "instructions": ["amx_int8"], "accelerators": [HOSTILE], "python": "3.11"},
        "weight_bytes": 67_000_000, "activation_bytes_per_token": 92_160,
        "ceilings": {"device": "cpu", "gemm_flops_per_s": {"fp32": 4.2e11, "bf16": 8.6e11, "int8": 2.1e12},
                     "copy_bytes_per_s": 4.1e10, "host_to_device_bytes_per_s": None,
                     "peak_flops_per_s": {"bf16": 1.05e12}, "peak_bytes_per_s": None},
    }  # fmt: skip
    return RunReport(**values | fields)


def as_json(report: RunReport) -> dict[str, Any]:
    return json.loads(json.dumps(report.to_dict(), allow_nan=False))


VARIANTS: dict[str, dict[str, Any]] = {
    "everything": {},
    "no ceilings": {"ceilings": None},
    "no bandwidth": {"ceilings": {"gemm_flops_per_s": {"int8": 2.1e12}, "copy_bytes_per_s": None,
                                  "peak_flops_per_s": {}}},
    "ceilings without weights": {"weight_bytes": 0},
    "nothing measured": {"ceilings": None, "gemm_flops_per_s": None, "energy_j": None, "price_per_hour": None},
    "no machine": {"machine": {}},
    "no rows here": {"this_run": Counters(), "wall_s": 0.0, "samples": [], "commits": [], "status": "already_finished"},
    "one sample": {"samples": [{"elapsed_s": 1.0, "rows": 9, "real_tokens": 9, "computed_tokens": 9}]},
    "examples of an earlier process": {"error_examples": {}},
}  # fmt: skip


@pytest.mark.parametrize("variant", VARIANTS)
def test_whatever_is_not_known_the_page_tells_only_the_json(variant: str) -> None:
    report = as_json(fabricated(**VARIANTS[variant]))
    page = check_figures(render(report), report)
    has_roofline = any((f.key or "").startswith("/ceilings/gemm") for f in page.figures)
    assert has_roofline == (variant not in ("no ceilings", "ceilings without weights", "nothing measured",
                                            "no rows here"))  # fmt: skip


def test_engines_that_were_tried_are_named_with_their_figures() -> None:
    report = as_json(fabricated())
    report["plan"] |= {"engine": "static", "batch_size": 64, "max_new_tokens": 48}
    for alternative, engine in zip(
        report["plan"]["alternatives"], ("static", "continuous", HOSTILE, None), strict=False
    ):
        alternative |= {"engine": engine, "rows_at_once": 64}
    page = check_figures(render(report), report)
    named = {
        f.key: f.text for f in page.figures if (f.key or "").endswith("/engine") and "alternatives" in (f.key or "")
    }
    assert named == {f"/plan/alternatives/{i}/engine": e for i, e in enumerate(("static", "continuous", HOSTILE))}
    assert "Where an engine is named" in render(report)
    assert "Where an engine is named" not in render(as_json(fabricated()))


def test_names_and_messages_are_text_and_nothing_else() -> None:
    html = render(as_json(fabricated()))
    page = Page(html)
    assert not {"script", "img", "iframe", "object", "link"} & {e.tag for e in page.elements}
    assert "{{ 7 * 7 }}" in html and HOSTILE not in html
    assert sum(HOSTILE in figure.text for figure in page.figures) >= 15


def test_the_page_is_whole_in_itself() -> None:
    page = Page(render(as_json(fabricated())))
    for element in page.elements:
        assert not {"src", "href", "onload", "onclick", "srcset"} & set(element.attributes)
    style = next(e.text for e in page.elements if e.tag == "style")
    assert not re.search(r"url\(|@import|@font-face", style)
    named = {e.attributes["id"] for e in page.elements if "id" in e.attributes}
    for svg in (e for e in page.elements if e.tag == "svg"):
        assert svg.attributes["role"] == "img" and set((svg.attributes["aria-labelledby"] or "").split()) <= named


def test_bars_are_as_long_as_their_values() -> None:
    report = as_json(fabricated())
    figures = Page(render(report)).figures
    rects = [f for f in figures if f.tag == "rect" and (f.key or "").endswith("real_tokens_per_s")]
    assert len(rects) == 2 * len(report["samples"])  # for a phone and for a desktop
    scales = {round(float(f.attributes["height"] or 0) / float(f.attributes["data-value"] or 1), 4) for f in rects}
    assert len(scales) == 1
    widths = {f.key: re.search(r"width:([\d.]+)%", f.attributes.get("style") or "") for f in figures if f.tag == "i"}
    rows = [widths[f"/lengths/{i}/rows"] for i in range(2)]
    assert [float(w[1]) for w in rows if w] == [100.0, 99.4]
    rates = [widths[f"/plan/alternatives/{i}/{kind}_tokens_per_s"] for i, kind in ((1, "measured"), (3, "predicted"))]
    assert [float(w[1]) for w in rates if w] == pytest.approx([62.05, 29.2], abs=0.01)


def test_a_roofline_counts_weights_once_a_batch_and_activations() -> None:
    report = fabricated()
    moved = 20 * 67_000_000 + 33_000 * 92_160
    assert report.moved_bytes == moved and report.arithmetic_intensity == pytest.approx(9e12 / moved)
    assert report.flops_per_s == pytest.approx(3e11) and report.device_flops_per_s == pytest.approx(4.5e11)


@pytest.mark.parametrize(
    ("times", "stage"),
    [
        ({"read_s": 9.0, "tokenize_s": 2.0, "compute_s": 10.0}, "reading"),
        ({"read_s": 2.0, "tokenize_s": 9.0, "compute_s": 10.0}, "tokenizing"),
        ({"compute_s": 10.0, "write_s": 4.0, "read_s": 6.0}, "computing"),
        ({"compute_s": 10.0, "finish_s": 6.0, "write_s": 6.0}, "writing"),
    ],
)
def test_the_stage_that_limits_is_the_longest_of_the_busiest_lane(times: dict[str, float], stage: str) -> None:
    report = fabricated(this_run=Counters(rows=1, **times), wall_s=12.0)
    assert report.limiting_stage == stage
    assert stage.capitalize() in render(as_json(report))


def test_text_stands_out_from_its_ground() -> None:
    """WCAG 2.2: a contrast of 4.5 to 1 for text, in both colour schemes."""
    style = next(e.text for e in Page(render(as_json(fabricated()))).elements if e.tag == "style")
    schemes = [
        dict(re.findall(r"--(\w+): (#[0-9a-f]{6})", block)) for block in re.findall(r":root \{(.*?)\}", style, re.S)
    ]
    assert len(schemes) == 3  # light, dark, printed
    for colours in (schemes[0] | scheme for scheme in schemes):
        for text, ground in [
            ("ink", "paper"),
            ("soft", "paper"),
            ("accent", "paper"),
            ("ink", "track"),
            ("soft", "track"),
        ]:
            assert contrast(colours[text], colours[ground]) >= 4.5, (text, ground)


def contrast(a: str, b: str) -> float:
    light, dark = sorted((luminance(a), luminance(b)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_fields_of_a_report_are_all_json_values() -> None:
    report = as_json(fabricated())
    assert {f.name for f in dataclasses.fields(RunReport)} < set(report)
