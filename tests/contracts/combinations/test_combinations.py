"""Each combination of the table works with parity, or is refused in words that name a flag and say what to do."""

from __future__ import annotations

import importlib.util
import itertools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from packhorse.devices.host import cpu_precisions
from packhorse.errors import PackhorseError, UsageError
from tests.contracts.combinations.markdown import COLUMNS, combinations_of_readme, tables
from tests.contracts.combinations.running import Models, check_parity, needs_of, opened
from tests.contracts.combinations.table import ALL, CONTINUOUS, ENCODERS, VALUES, WITH_ENCODER, WORKS, Combination
from tests.cpu.engine import load

README = Path(__file__).parents[3] / "README.md"
BEGIN, END = "<!-- combinations -->", "<!-- /combinations -->"
# Somewhere behind the flag a message says what to do instead.
WHAT_TO_DO = re.compile(
    r"leave|drop|take|give|needs --|goes with|here are|runs on|belongs to|has fp32|has kernels|pip install"
)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Models]:
    root, before = tmp_path_factory.mktemp("combinations"), torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(root / "cache"))  # of exported graphs
        patch.delenv("PACKHORSE_VLLM_PYTHON", raising=False)
        yield Models(root)
    torch.set_num_threads(before)


def skip_unless_possible(combination: Combination) -> None:
    for package in needs_of(combination):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"needs {package}")
    if combination.backend == "vllm" and importlib.util.find_spec("vllm") is not None:
        pytest.skip("these are the words where vllm is not installed")
    if combination.precision != "fp32" and "bf16" not in cpu_precisions():
        pytest.skip("this processor has no bf16 instructions, in which all but the quantized layers is computed")


def marked() -> list[Any]:
    """A second graph of a backend that converts models takes seconds to make."""

    def is_slow(c: Combination) -> bool:
        return c.outcome == WORKS and c.backend in ("onnx", "openvino") and c.task != ENCODERS[0]

    return [pytest.param(c, marks=[pytest.mark.slow] * is_slow(c), id="-".join(c.key)) for c in ALL]


@pytest.mark.parametrize("combination", marked())
def test_it_works_with_parity_or_is_refused_in_words(combination: Combination, models: Models) -> None:
    skip_unless_possible(combination)
    if combination.outcome == WORKS:
        check_parity(combination, models)
        return
    with pytest.raises(PackhorseError) as caught, opened(combination, models):
        pass
    message = str(caught.value)
    assert combination.outcome in message
    assert combination.outcome.startswith("--") and WHAT_TO_DO.search(message), message


@pytest.mark.parametrize(("task", "engine"), [(CONTINUOUS, "static"), (WITH_ENCODER, "auto"), (WITH_ENCODER, "static")])
def test_packed_attention_is_refused_where_rows_are_padded(models: Models, task: str, engine: str) -> None:
    with pytest.raises(UsageError, match=r"--attention packed: --engine static .*leave one of them out"):
        load(models.root / task, attention="packed", engine=engine)


def test_every_pair_of_values_is_there_and_nothing_twice() -> None:
    keys = [combination.key for combination in ALL]
    assert len(set(keys)) == len(keys)
    assert all(value in VALUES[name] for key in keys for name, value in zip(VALUES, key, strict=True))
    for (i, left), (j, right) in itertools.combinations(enumerate(VALUES), 2):
        missing = set(itertools.product(VALUES[left], VALUES[right])) - {(key[i], key[j]) for key in keys}
        assert not missing, f"{left} x {right}: {sorted(missing)}"


def test_what_the_readme_lists_is_tried() -> None:
    listed = combinations_of_readme()
    assert len(listed) > 8 * len(COLUMNS) and {c.outcome == WORKS for c in listed} == {True, False}


def test_the_tables_of_the_readme_are_made_of_this() -> None:
    text = README.read_text(encoding="utf-8")
    assert text[text.index(BEGIN) + len(BEGIN) : text.index(END)].strip() == tables()
