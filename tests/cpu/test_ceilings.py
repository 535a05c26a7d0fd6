"""Ceilings: what is measured, what is left out, and what a cache that is good, old or broken gives."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from packhorse.backends import find_backend
from packhorse.devices import ceilings
from packhorse.devices.ceilings import Ceilings, best_gemm, known_ceilings, measure_ceilings
from packhorse.devices.host import cpu_name, cpu_precisions

ALL = ("fp32", "bf16", "fp16", "int8", "fp8")
RATE = 1e9
FILE = "packhorse/ceilings.json"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path


def entries(cache: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((cache / FILE).read_text())
    return found


def keep(cache: Path, value: Ceilings, threads: int = 1) -> None:
    import torch

    path = cache / FILE
    path.parent.mkdir(exist_ok=True)
    key = f"cpu {cpu_name()} | {threads} threads | torch {torch.__version__}"
    path.write_text(json.dumps({key: value.to_dict()}))


def test_measures_what_the_processor_has_instructions_for_and_nothing_else(cache: Path) -> None:
    assert known_ceilings("cpu", 1) is None
    found = measure_ceilings("cpu", 1, ALL)
    assert set(found.gemm_flops_per_s) <= set(cpu_precisions()) and "fp32" in found.gemm_flops_per_s
    assert found.device == f"cpu {cpu_name()}, 1 threads"
    assert found.copy_bytes_per_s is not None and found.host_to_device_bytes_per_s is None
    rates = [*found.gemm_flops_per_s.values(), found.copy_bytes_per_s]
    assert all(math.isfinite(rate) and rate > RATE for rate in rates)
    assert (found.peak_flops_per_s, found.peak_bytes_per_s) == ({}, None)
    assert known_ceilings("cpu", 1) == found == Ceilings.from_dict(json.loads(json.dumps(found.to_dict())))
    assert not list(cache.rglob("*.tmp"))


def test_what_is_known_is_not_measured_again(cache: Path) -> None:
    """The numbers in the cache are none that a processor has."""
    kept = Ceilings(f"cpu {cpu_name()}, 1 threads", {"fp32": 1.25}, 2.5)
    keep(cache, kept)
    assert known_ceilings("cpu", 1) == measure_ceilings("cpu", 1, ("fp32",)) == kept
    assert best_gemm("cpu", "fp32", 1) is not None


def test_only_what_is_missing_is_measured(cache: Path) -> None:
    keep(cache, Ceilings("cpu", {"bf16": 1.25}, 2.5))
    found = measure_ceilings("cpu", 1, ("fp32", "bf16"))
    assert found.gemm_flops_per_s["bf16"] == 1.25 and found.gemm_flops_per_s["fp32"] > RATE
    assert found.copy_bytes_per_s == 2.5
    assert known_ceilings("cpu", 1) == found


def test_other_threads_have_ceilings_of_their_own(cache: Path) -> None:
    import torch

    keep(cache, Ceilings("cpu", {"fp32": 1.25}, 2.5), threads=7)
    before = torch.get_num_threads()
    assert known_ceilings("cpu", 1) is None
    found = measure_ceilings("cpu", 1, ())
    assert found.gemm_flops_per_s == {} and torch.get_num_threads() == before
    assert len(entries(cache)) == 2 and known_ceilings("cpu", 7) is not None


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "null", '"a"', "{}"],
)
def test_a_broken_cache_counts_for_nothing(cache: Path, text: str) -> None:
    (cache / FILE).parent.mkdir()
    (cache / FILE).write_text(text)
    assert known_ceilings("cpu", 1) is None
    assert best_gemm("cpu", "fp32", 1) == entries(cache).popitem()[1]["gemm_flops_per_s"]["fp32"]


@pytest.mark.parametrize(
    "change",
    [
        {"gemm_flops_per_s": [1]}, {"gemm_flops_per_s": {"fp32": "fast"}}, {"gemm_flops_per_s": {"fp32": -1.0}},
        {"gemm_flops_per_s": {"fp32": math.inf}}, {"gemm_flops_per_s": None}, {"copy_bytes_per_s": 0},
        {"copy_bytes_per_s": {}},
    ],
)  # fmt: skip
def test_a_broken_entry_counts_for_nothing(cache: Path, change: dict[str, Any]) -> None:
    keep(cache, Ceilings("cpu", {"fp32": 1.25}, 2.5))
    key, value = entries(cache).popitem()
    (cache / FILE).write_text(json.dumps({key: value | change}))
    assert known_ceilings("cpu", 1) is None
    (cache / FILE).write_text(json.dumps({key: 3}))
    assert known_ceilings("cpu", 1) is None


def test_a_cache_that_cannot_be_written_is_no_error(cache: Path) -> None:
    (cache / "packhorse").write_text("a file where the folder should be")
    assert best_gemm("cpu", "fp32", 1) is not None
    assert known_ceilings("cpu", 1) is None


def test_a_product_is_measured_again_where_a_model_came_implausibly_near(cache: Path) -> None:
    keep(cache, Ceilings("cpu", {"fp32": 100.0}, 2.5))
    assert best_gemm("cpu", "fp32", 1, seen=ceilings.PLAUSIBLE * 100) == 100
    again = best_gemm("cpu", "fp32", 1, seen=ceilings.PLAUSIBLE * 100 + 1)
    assert again is not None and again > RATE
    known = known_ceilings("cpu", 1)
    assert known is not None and known.gemm_flops_per_s["fp32"] == again and known.copy_bytes_per_s == 2.5
    # The best is kept: no product of this machine is faster than this one.
    keep(cache, Ceilings("cpu", {"fp32": 1e30}, 2.5))
    assert best_gemm("cpu", "fp32", 1, seen=1e30) == 1e30


def test_emulated_precisions_have_no_best_product(cache: Path) -> None:
    for precision in {*ALL, "fp7"} - {*cpu_precisions()}:
        assert best_gemm("cpu", precision, 1) is None
    assert not (cache / FILE).exists()


@pytest.mark.parametrize("name", ["torch", "onnx", "openvino"])
def test_backends_share_what_was_measured(cache: Path, name: str) -> None:
    backend = find_backend(name)
    assert backend.known_ceilings("cpu", 1) is None
    kept = Ceilings("cpu", {"fp32": 100.0}, 2.5)
    keep(cache, kept)
    assert backend.known_ceilings("cpu", 1) == backend.ceilings("cpu", ["fp32"], 1) == kept
    assert backend.best_gemm("cpu", "fp32", 1, 50.0) == 100


def test_the_null_backend_has_no_device() -> None:
    backend = find_backend("null")
    assert backend.known_ceilings("cpu", 1) is None and backend.ceilings("cpu", ("fp32",), 1) is None
