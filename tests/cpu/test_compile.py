"""--compile: torch.compile gives every row what it has alone, stands in the plan, and comes into question by itself."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

import packhorse
from packhorse.backends.torch import can_compile
from packhorse.config import EngineConfig
from packhorse.errors import UsageError
from packhorse.loading import Loader
from packhorse.loading.choosing import families
from tests.cpu import packable, reference
from tests.cpu.engine import load

TEXTS = packable.texts((1, 2, 5, 30, 300, 5, 5, 17, 120, 64, 33, 2, 8, 9, 10, 11))
needs_compiler = pytest.mark.skipif(not can_compile("cpu"), reason="torch.compile needs a C++ compiler on a CPU")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return packable.without_special_tokens(packable.save(tmp_path_factory.mktemp("compile"), "bert"))


@needs_compiler
def test_compiled_rows_are_those_of_plain_transformers(folder: Path, tmp_path: Path) -> None:
    expected = reference.logits(folder, TEXTS, max_length=packable.MAX_LENGTH).softmax(1).numpy().max(1)
    rows = pa.table({"text": TEXTS})
    report = packhorse.run(folder, rows, tmp_path, compile=True, precision="fp32", devices="cpu", shard_rows=5)
    found = pa.parquet.read_table(tmp_path)["score"].to_numpy()
    np.testing.assert_allclose(found, expected, atol=1e-5)
    plan = report.plan
    assert (plan["compiled"], plan["batching"], plan["workers"]) == (True, "padded", 1)


def test_what_compiled_code_does_not_have_is_refused(folder: Path) -> None:
    for other in ({"exact": True}, {"attention": "packed"}, {"batching": "packed"}):
        with pytest.raises(UsageError, match=r"--compile runs padded batches"):
            load(folder, compile=True, **other)
    with pytest.raises(UsageError, match=r"--compile: belongs to --backend torch, this is null"):
        load(folder, compile=True, backend="null")


def test_compiled_ways_come_into_question_unless_something_else_was_asked_for(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("packhorse.backends.torch.can_compile", lambda device: True)

    def compiled(**settings: object) -> set[str]:
        config = EngineConfig.model_validate({"model": str(folder), "devices": "cpu"} | settings)
        return {way.name for way in families(Loader(config))[1] if way.compiled}

    assert "torch fp32 compiled" in compiled()
    assert "torch int8 compiled" not in compiled(tune="full")
    for asked in ({"compile": False}, {"attention": "sdpa"}, {"batching": "padded"}, {"exact": True}):
        assert compiled(**asked) == set()
    monkeypatch.setattr("packhorse.backends.torch.can_compile", lambda device: False)
    assert compiled() == set()


def test_asked_for_by_name_nothing_else_is_looked_at(folder: Path) -> None:
    _, ways, _ = families(Loader(EngineConfig(model=str(folder), devices="cpu", compile=True)))
    assert {way.backend for way in ways} == {"torch"} and all(way.compiled for way in ways)
